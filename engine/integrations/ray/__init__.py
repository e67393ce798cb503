"""stepfuse beyond one machine, on Ray's own parts: Ray Serve for services, Ray Data for tables of requests.

    dataset.map_batches(Sampler, batch_format="pyarrow", compute=ray.data.ActorPoolStrategy(size=4))

The names here are loaded on first use, and need the extra ``stepfuse[ray]``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stepfuse.extras import pip_install

if TYPE_CHECKING:
    from stepfuse.integrations.ray.data import Sampler as Sampler
    from stepfuse.integrations.ray.data import webdataset_columns as webdataset_columns
    from stepfuse.integrations.ray.data import without_written as without_written
    from stepfuse.integrations.ray.job import run_job as run_job
    from stepfuse.integrations.ray.serving import deployment as deployment

# By name, the module that has it.
_MODULES = {
    "Sampler": "data",
    "deployment": "serving",
    "run_job": "job",
    "webdataset_columns": "data",
    "without_written": "data",
}

__all__ = [
    "Sampler",
    "deployment",
    "webdataset_columns",
    "without_written",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("stepfuse"):
            raise
        message = f"{__name__}.{name} needs {error.name}: {pip_install('ray')}"
        raise ModuleNotFoundError(message, name=error.name) from error
