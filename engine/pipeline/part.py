"""One network of a pipeline beside the denoiser: text encoder, VAE decoder, VAE encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.backends.host.onnxruntime import open_session, returning_memory
from stepfuse.errors import BundleError, DenoiserError, EngineClosed

Array = npt.NDArray[Any]


class Part:
    """A network that runs once or twice an image, in ONNX Runtime, and holds no more than its weights between runs.

    Calls from any number of threads are safe.

    Args:
        path: Its ONNX file.
        inputs: Names of its inputs.
        outputs: Names of outputs that it must have; None takes those it has.
        threads: As in ``open_session``. Idle threads do not spin: the denoiser's need the cores.

    Raises:
        BundleError: If it does not load, or its inputs and outputs are others.
    """

    def __init__(
        self, path: Path, inputs: tuple[str, ...], outputs: tuple[str, ...] | None = None, *, threads: int = 0
    ) -> None:
        self._name = path.name
        session = open_session(path, threads=threads, spinning=False)
        for kind, nodes, wanted in (
            ("inputs", session.get_inputs(), inputs),
            ("outputs", session.get_outputs(), outputs),
        ):
            found = [node.name for node in nodes]
            if wanted is not None and set(found) != set(wanted):
                raise BundleError(f"{path}: {kind} must be {', '.join(wanted)}, got {', '.join(found)}")
        self.outputs = tuple(node.name for node in session.get_outputs())
        self._session: Any = session

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Its outputs by name.

        Raises:
            DenoiserError: If ONNX Runtime fails, or an output holds a number that is not finite.
            EngineClosed: If it is closed.
        """
        session = self._session  # another thread may close this meanwhile
        if session is None:
            raise EngineClosed("the pipeline is closed")
        try:
            found = session.run(self.outputs, dict(feeds), returning_memory())
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
            raise DenoiserError(f"ONNX Runtime could not run {self._name} on {shapes}: {error}") from error
        for name, array in zip(self.outputs, found, strict=True):
            if not np.isfinite(array).all():
                raise DenoiserError(
                    f"{name} of {self._name} must be finite, got {array[~np.isfinite(array)][0]}: float16 weights"
                    " overflow in some networks, which are to be exported in float32"
                )
        return dict(zip(self.outputs, found, strict=True))

    def close(self) -> None:
        """Lets the network go; closing twice is fine."""
        self._session = None
