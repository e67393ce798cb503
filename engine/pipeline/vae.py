"""The variational autoencoder of a latent model: from samples to pictures, and back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from stepfuse.arguments import whole_number
from stepfuse.backends.cuda.config import Cuda
from stepfuse.backends.device_samples import DeviceSample
from stepfuse.bundle.bundle import Bundle
from stepfuse.bundle.onnx_file import OnnxFile
from stepfuse.bundle.pipeline_info import VAE_DECODER, VAE_ENCODER
from stepfuse.errors import BundleError, DenoiserError
from stepfuse.pipeline.stage import Interrupt, Stage
from stepfuse.pipeline.tiles import OVERLAP, tiled

Images = npt.NDArray[np.float32]
_Run = Callable[..., Images]

#: Side in pixels of a tile, ``auto``: tiles where a picture is large; None: no tiles.
Tile = int | Literal["auto"] | None

AUTO_TILE = 512
AUTO_PIXELS = 1 << 20  # the largest picture that ``auto`` does not tile


class Vae:
    """Decodes and encodes one picture at a time, since no other stage of a pipeline takes as much memory.

    A picture therefore has the same bits whatever is decoded with it. Calls from any number of threads are safe
    and run one at a time.

    Args:
        bundle: A latent model's.
        threads: As in ``open_session``.
        tile: Side in pixels of the tiles that a larger picture is split into, a multiple of four times the pixels that
            one latent stands for; ``auto``: tiles of 512 pixels where a picture has more than 1024 x 1024; None: no
            tiles. Tiles bound memory, and their seams are blended, but each is normalised by itself: colours may
            differ a little.
        gpu: As in ``Stage``.

    Raises:
        BundleError: If the bundle has no decoder, or one that cannot be used.
        ValueError: If ``tile`` is below 1 or not such a multiple.
        TypeError: If ``tile`` is not a whole number, ``auto`` or None.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 0, tile: Tile = "auto", gpu: Cuda | None = None) -> None:
        assert bundle.pipeline is not None
        if VAE_DECODER not in bundle.networks:
            raise BundleError(f"{bundle.path}: has no {VAE_DECODER}")
        self._cell, self._channels = bundle.pipeline.pixels_per_latent, bundle.info.shape[0]
        self._tile = _checked_tile(tile, self._cell * OVERLAP)
        self._decoder = Stage(bundle.networks[VAE_DECODER], ("latent",), ("image",), threads=threads, gpu=gpu)
        self._encoder: Stage | None = None
        self._encoder_file = bundle.networks.get(VAE_ENCODER)
        self._threads, self._gpu = threads, gpu
        self._lock = threading.Lock()

    def decode(
        self,
        latents: Images,
        interrupt: Interrupt | None = None,
        on_device: Sequence[DeviceSample | None] | None = None,
    ) -> Images:
        """Pictures of samples.

        Args:
            latents: Shape (n, C, h, w), as the denoiser's samples are.
            interrupt: Gives it up, with a DenoiserError.
            on_device: Where each of them is in the memory of the decoder's GPU; it is read there, but for what is
                decoded in tiles, which are cut on the host.

        Returns:
            Shape (n, 3, H, W), -1 to 1 and a little beyond.

        Raises:
            DenoiserError: If the decoder fails, or returns another shape.
        """

        def run(x: Images | DeviceSample) -> Images:
            image = self._decoder.run({"latent": x}, interrupt)["image"]
            sides = x.shape[2] * self._cell, x.shape[3] * self._cell
            return _checked(f"image of {VAE_DECODER}", image, {(1, channels, *sides) for channels in (3, 1)})

        each = zip(latents, on_device or [None] * len(latents), strict=True)
        return np.concatenate([self._run_one(run, x[None], shrinks=False, on_device=at) for x, at in each])

    def encode(self, images: Images, interrupt: Interrupt | None = None) -> tuple[Images, Images]:
        """Samples of pictures: mean and standard deviation of the posterior.

        Args:
            images: Shape (n, 3, H, W), -1 to 1.
            interrupt: Gives it up, with a DenoiserError.

        Returns:
            Two of shape (n, C, h, w), in the denoiser's units.

        Raises:
            BundleError: If the bundle has no encoder, or one that cannot be used.
            DenoiserError: If the encoder fails, or returns another shape.
        """
        encoder = self._open_encoder()

        def run(x: Images) -> Images:
            found = encoder.run({"image": x}, interrupt)
            shape = 1, self._channels, x.shape[2] // self._cell, x.shape[3] // self._cell
            both = [_checked(f"{name} of {VAE_ENCODER}", found[name], {shape}) for name in ("latent", "std")]
            return np.concatenate(both, axis=1)

        both = np.concatenate([self._run_one(run, x[None], shrinks=True) for x in images])
        mean, std = np.split(both, 2, axis=1)
        return mean, std

    def close(self) -> None:
        """Frees decoder and encoder."""
        for stage in (self._decoder, self._encoder):
            if stage is not None:
                stage.close()

    def _run_one(self, run: _Run, x: Images, *, shrinks: bool, on_device: DeviceSample | None = None) -> Images:
        """Runs a network on one picture, in tiles if it is large."""
        side = self._tile_for(x.shape[2] * x.shape[3] * (1 if shrinks else self._cell**2))
        x = np.ascontiguousarray(x, dtype=np.float32)
        with self._lock:
            if side is None:
                return run(x if on_device is None else on_device)
            sides = side, side // self._cell
            return tiled(run, x, *(sides if shrinks else sides[::-1]))

    def _tile_for(self, pixels: int) -> int | None:
        """Side in pixels of the tiles of a picture."""
        if self._tile == "auto":
            return None if pixels <= AUTO_PIXELS else max(AUTO_TILE, self._cell * OVERLAP)
        return self._tile

    def require_encoder(self) -> OnnxFile:
        """The encoder's file.

        Raises:
            BundleError: If the bundle has none.
        """
        if self._encoder_file is None:
            raise BundleError(f"a picture to begin with needs {VAE_ENCODER}, which this bundle does not have")
        return self._encoder_file

    @property
    def encoder_seconds(self) -> float:
        """How long the encoder has run."""
        return 0.0 if self._encoder is None else self._encoder.seconds

    @property
    def decoder_seconds(self) -> float:
        """How long the decoder has run."""
        return self._decoder.seconds

    def _open_encoder(self) -> Stage:
        """The encoder, opened on first use."""
        with self._lock:
            if self._encoder is None:
                outputs = "latent", "std"
                self._encoder = Stage(self.require_encoder(), ("image",), outputs, threads=self._threads, gpu=self._gpu)
            return self._encoder


def _checked(name: str, found: Images, shapes: set[tuple[int, ...]]) -> Images:
    """A network's result, float32."""
    if found.shape not in shapes:
        raise DenoiserError(f"{name} must have shape {' or '.join(map(str, sorted(shapes)))}, got {found.shape}")
    return found.astype(np.float32, copy=False)


def _checked_tile(tile: Tile, multiple: int) -> Tile:
    if tile is None or tile == "auto":
        return tile
    tile = whole_number("tile", tile, "a number of pixels, 'auto' or None")
    if tile < multiple or tile % multiple:
        raise ValueError(f"tile must be a multiple of {multiple} pixels for this model, got {tile}")
    return tile
