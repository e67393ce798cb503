"""Kernels of the fused step. Today the numpy oracle that every other implementation is checked against."""

if __name__ != "stepfuse.kernels":
    raise ImportError(f"this folder installs as 'stepfuse.kernels': import that, not {__name__!r}")

from stepfuse.kernels.reference import fused_step_ref

__all__ = ["fused_step_ref"]
