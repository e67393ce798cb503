"""A diffusers pipeline's network as a torch module, for an engine to run without an export."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stepfuse.bundle.model_info import ModelInfo
from stepfuse.errors import ExportError
from stepfuse.export.pipelines.export_plan import DENOISER, SAMPLE, TIMESTEP, ExportPart
from stepfuse.export.pipelines.pipeline_folder import PipelineFolder
from stepfuse.export.pipelines.read_plan import read_plan
from stepfuse.extras import pip_install

try:
    import torch
    from diffusers import DiffusionPipeline
except ImportError as error:
    raise ImportError(f"a diffusers pipeline needs {error.name}: {pip_install('export')}") from error

#: dtypes by the names that engines have for them.
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


class NamedInputs(torch.nn.Module):
    """A denoiser of an export plan, which takes its inputs by position, called as engines call a module.

    Args:
        module: The denoiser.
        names: Of its conditioning inputs, in their order.
    """

    def __init__(self, module: torch.nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module, self.names = module, tuple(names)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, **cond: torch.Tensor) -> torch.Tensor:
        """Shape (R, *shape), (R,) and a row of each conditioning input, to the prediction (R, *shape)."""
        with torch.device(sample.device):  # where positions and the like are to be made, which a graph has as constants
            found: torch.Tensor = self.module(sample, timestep, *(cond[name] for name in self.names))
        return found


def read_network(
    source: str | os.PathLike[str] | DiffusionPipeline,
    *,
    size: int | tuple[int, int] | None = None,
    precision: str | None = None,
    device: str = "cpu",
) -> tuple[torch.nn.Module, ModelInfo]:
    """The network, and what its bundle would say of it.

    Args:
        source: A folder of ``save_pretrained``, whose network is loaded to ``device``; or a pipeline, whose weights the
            module shares where they are. What its call makes of the network meanwhile, such as an adapter that is
            loaded, is not the module's: only values that are changed in place are.
        size: Default size of pictures in pixels, as in ``stepfuse.export.from_diffusers``.
        precision: What a folder's network is loaded as, a name of ``DTYPES``; None is ``float32``.
        device: Where to.

    Raises:
        ExportError: If the pipeline, a component or a setting is not covered, or a component cannot be loaded.
        ValueError: If ``size`` is none, ``precision`` is unknown or given beside a pipeline, or a component of the
            pipeline is in training mode, has hooks of accelerate or is without its weights.
    """
    if precision is not None and precision not in DTYPES:
        raise ValueError(f"precision must be one of {', '.join(DTYPES)}, got {precision!r}")
    if isinstance(source, DiffusionPipeline):
        if precision is not None:
            raise ValueError(f"precision must be left to the pipeline, got {precision!r}: pipe.to(dtype) changes it")
        with _configurations(source) as folder:
            plan, info = read_plan(folder, size=size)
        part = _denoiser(plan.parts)
        module = part.build(*(_shared(name, getattr(source, name)) for name in part.components))
    else:
        folder = PipelineFolder(Path(source))
        plan, info = read_plan(folder, size=size)
        part = _denoiser(plan.parts)
        dtype = DTYPES[precision or "float32"]
        module = part.build(*(folder.load(name, kinds).to(device, dtype) for name, kinds in part.components.items()))
    named = NamedInputs(module, [one.name for one in part.inputs if one.name not in (SAMPLE, TIMESTEP)])
    return named.to(next(named.parameters()).device).eval(), info  # positions that the plan has added


def _denoiser(parts: Sequence[ExportPart]) -> ExportPart:
    return next(part for part in parts if part.file == DENOISER)


@contextmanager
def _configurations(pipe: DiffusionPipeline) -> Iterator[PipelineFolder]:
    """A folder of the pipeline without weights, for as long as the context lasts; errors name its class instead."""
    kind = type(pipe).__name__
    with TemporaryDirectory() as path:
        pipe.save_config(path)
        for name, component in pipe.components.items():
            _write_configuration(component, Path(path, name))
        try:
            yield PipelineFolder(Path(path))
        except ExportError as error:
            raise ExportError(str(error).replace(path, kind)) from error


def _write_configuration(component: Any, path: Path) -> None:
    if hasattr(component, "save_config"):  # of diffusers
        component.save_config(path)
    elif isinstance(component, torch.nn.Module) and hasattr(component, "config"):  # of transformers
        component.config.save_pretrained(path)
    elif hasattr(component, "save_pretrained"):  # tokenizers
        component.save_pretrained(path)


def _shared(name: str, module: torch.nn.Module) -> torch.nn.Module:
    """A copy of a component that has the same weights in the same memory, to be changed as exports change modules."""
    kind = type(module).__name__
    if any(part.training for part in module.modules()):
        raise ValueError(f"{name} ({kind}) must be in evaluation mode, got one in training mode: pipe.{name}.eval()")
    if any(hasattr(part, "_hf_hook") for part in module.modules()):
        raise ValueError(
            f"{name} ({kind}) must be on its device for as long as the engine lives, got one with accelerate's hooks,"
            " which move it call by call: leave out enable_model_cpu_offload() and the like, and use pipe.to(device)"
        )
    weights: Mapping[int, torch.Tensor] = {id(one): one for one in (*module.parameters(), *module.buffers())}
    if any(one.is_meta for one in weights.values()):
        raise ValueError(f"{name} ({kind}) must have its weights, got some on the device 'meta'")
    return copy.deepcopy(module, dict(weights))
