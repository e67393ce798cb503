"""The HTTP service: ``create_app`` over loaded models, as ``stepfuse serve`` runs it.

``create_app`` is loaded on first use, and needs the extra ``serve``; sampling imports none of this. Models behind the
service's interface need no extra: batches of requests are drawn by them, too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stepfuse.extras import pip_install
from stepfuse.server.class_model import ClassModel
from stepfuse.server.limits import Limits
from stepfuse.server.models import ServedModel
from stepfuse.server.prompt_model import PromptModel

if TYPE_CHECKING:
    from stepfuse.server.app import create_app as create_app

__all__ = ["ClassModel", "Limits", "PromptModel", "ServedModel", "create_app"]


def __getattr__(name: str) -> Any:
    if name != "create_app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return import_module(f"{__name__}.app").create_app
    except ModuleNotFoundError as error:
        raise ImportError(f"the HTTP service needs {error.name}: {pip_install('serve')}") from error
