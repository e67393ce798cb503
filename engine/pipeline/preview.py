"""Previews of a picture as it comes into being, decoded when they are looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from stepfuse.pipeline.pictures import Array, Pictures


@dataclass(frozen=True, eq=False)
class PicturePreview:
    """What a request has come to.

    Attributes:
        step: Steps done.
        total: Steps in all.
        x0: Shape (C, h, w), the clean sample implied so far; with ``step == total`` the sample itself.
    """

    step: int
    total: int
    x0: Array
    _decode: Callable[[], Pictures] = field(repr=False)

    def decode(self) -> Pictures:
        """The picture of it, one in number; of the last preview the request's result, which is decoded already.

        Runs the VAE's decoder on the calling thread: ``await asyncio.to_thread(preview.decode)`` leaves an event loop
        free.

        Raises:
            DenoiserError: If the decoder fails.
            EngineClosed: If the pipeline is closed.
        """
        return self._decode()
