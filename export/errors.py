"""What can go wrong when a model is exported."""

from stepfuse.errors import ExportError

__all__ = ["ExportError"]
