"""The HTTP service: ``create_app`` over loaded models, as ``stepfuse serve`` runs it.

Needs the extra ``serve``; sampling imports none of this.
"""

from stepfuse.extras import pip_install

try:
    from stepfuse.server.app import create_app
except ModuleNotFoundError as error:
    raise ImportError(f"the HTTP service needs {error.name}: {pip_install('serve')}") from error
from stepfuse.server.class_model import ClassModel
from stepfuse.server.limits import Limits
from stepfuse.server.models import ServedModel
from stepfuse.server.prompt_model import PromptModel

__all__ = ["ClassModel", "Limits", "PromptModel", "ServedModel", "create_app"]
