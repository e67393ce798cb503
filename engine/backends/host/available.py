"""Which libraries run networks on this machine, and in which precisions."""

from __future__ import annotations

from importlib.util import find_spec

from stepfuse.backends.host.config import BACKENDS


def precisions_of(backend: str) -> list[str]:
    """The precisions that a back end and this processor compute in, float32 first; none if it is not installed.

    Args:
        backend: A name of ``BACKENDS``.

    Raises:
        ImportError: If it is installed and cannot be imported.
    """
    if backend != "openvino":
        return ["float32"]
    if find_spec("openvino") is None:
        return []
    import openvino as ov

    from stepfuse.backends.host.openvino.library import precisions

    return precisions(ov.Core())


def installed() -> list[str]:
    """The back ends that are installed, whether or not they can be imported."""
    return [name for name in BACKENDS if name != "openvino" or find_spec("openvino") is not None]
