"""From trained models to bundles, and from bundles to TensorRT plans."""

if __name__ != "stepfuse.export":
    raise ImportError(f"this folder installs as 'stepfuse.export': import that, not {__name__!r}")

from stepfuse.export.errors import ExportError

__all__ = ["ExportError"]
