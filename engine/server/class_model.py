"""A model without prompts behind the service's interface: a request's prompt is the name of a class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from stepfuse.bundle.bundle import Bundle
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.bundle.pipeline_info import VAE_DECODER
from stepfuse.display import brief
from stepfuse.engine import Engine
from stepfuse.pipeline.drawn import conditions, facts, record
from stepfuse.pipeline.input_images import mask_of, sample_of
from stepfuse.pipeline.pictures import Array, Pictures, to_pixels
from stepfuse.pipeline.provenance import Provenance
from stepfuse.pipeline.size import pixels_of
from stepfuse.pipeline.vae import Vae
from stepfuse.requests.prompt_request import PromptRequest
from stepfuse.requests.request import Request
from stepfuse.server.models import Drawing, ServedModel, Watched
from stepfuse.serving.config import CostCurve
from stepfuse.serving.reporting import Observer


def check_served(info: ModelInfo, bundle: Bundle | None = None) -> bool:
    """Whether a model has a VAE, of those that can be served as an engine.

    Raises:
        ValueError: If there are several conditioning inputs, or the samples are no pictures.
    """
    latent = bundle is not None and bundle.pipeline is not None and bundle.file(VAE_DECODER) is not None
    if len(info.shape) != 3 or not (latent or info.shape[0] in (1, 3)):
        raise ValueError(f"a model must sample pictures, shape (1 or 3, H, W), to be served, got {info.shape}")
    if len(info.given_cond) > 1:
        raise ValueError(f"a model must have one conditioning input at most to be served, got {len(info.given_cond)}")
    return latent


class ClassModel(ServedModel):
    """An engine.

    Args:
        name: What clients call it.
        engine: With one conditioning input or none.
        bundle: Of a latent model, whose VAE is then loaded.
        threads: Of that, as in ``Engine.load``.

    Raises:
        ValueError: If the engine has several conditioning inputs, or its samples are no pictures.

    Examples:
        >>> from stepfuse.server import ClassModel, create_app
        >>> app = create_app({"fashion": ClassModel("fashion", sf.Engine.load("fashion"))})
        >>> app.title
        'stepfuse'
    """

    def __init__(self, name: str, engine: Engine, *, bundle: Bundle | None = None, threads: int = 0) -> None:
        info = engine.info
        latent = check_served(info, bundle)
        self._engine = engine
        self._vae: Vae | None = None
        self._cell = 1
        size = info.shape[2], info.shape[1]
        if latent:
            assert bundle is not None
            assert bundle.pipeline is not None
            self._vae, size = Vae(bundle, threads=threads), pixels_of(bundle.pipeline, info.shape)
            self._cell = bundle.pipeline.pixels_per_latent
        super().__init__(name, info, engine.model, engine.serving, size)
        self._cond = next(iter(info.given_cond.values()), None)
        self.classes = () if self._cond is None else tuple(self._cond.names)

    def submit(self, request: PromptRequest) -> Drawing:
        """Queues a picture of a class.

        Raises:
            ValueError: If the model has no such class or does not draw the size, or as ``Engine.submit`` does.
            Exception: As ``Engine.submit`` does.
        """
        asked = self._asked(request)
        future = self._engine.submit(asked)
        made = self._record(asked)  # while the network computes
        entries = facts(made)
        return Drawing(future, lambda sample: self._picture(made, entries, sample))

    def stream(self, request: PromptRequest) -> Watched:
        """The same, watched."""
        asked = self._asked(request)
        return Watched(
            self._engine.stream(asked),
            lambda preview: _shown(self._pixels(preview.x0[None])),
            lambda preview: self._picture(made := self._record(asked), facts(made), preview.x0),
        )

    def stats(self) -> Mapping[str, Any]:
        """Of the engine."""
        return self._engine.stats()

    def observe(self, observer: Observer | None) -> None:
        """Has the engine's iterations reported."""
        self._engine.observe(observer)

    def warm_up(self, *, calibrate: bool | CostCurve = False) -> None:
        """Runs a forward of one and of two rows; measures or takes the cost of a forward if ``calibrate`` says so."""
        self._engine.warmup([1, 2][: self.serving.row_limit])
        if calibrate:
            self.cost = self._engine.calibrate(None if calibrate is True else calibrate)

    def close(self, *, abort: bool = False, timeout: float | None = None) -> None:
        """Ends the engine."""
        self._engine.close(abort=abort, timeout=timeout)

    def _asked(self, request: PromptRequest) -> Request:
        size = self.size
        if (request.width or size[0], request.height or size[1]) != size:
            given = f"{request.width or size[0]} x {request.height or size[1]}"
            raise ValueError(f"this model draws {size[0]} x {size[1]} pixels alone, got {given}")
        return Request(
            cond=self._class("prompt", request.prompt),
            negative_cond=self._class("negative_prompt", request.negative_prompt),
            seed=request.seed,
            table=self._engine.table(
                sampler=request.sampler,
                steps=request.steps,
                guidance_scale=request.guidance_scale,
                eta=request.eta,
                **request.options,
            ),
            image=self._given_image(request),
            mask=self._given_mask(request),
            strength=request.strength,
            priority=request.priority,
            deadline=request.deadline,
            timeout=request.timeout,
            id=request.id,
        )

    def _given_image(self, request: PromptRequest) -> Array | None:
        """The picture that a request begins with, as a sample."""
        if request.image is None:
            return None
        picture = self._scaled(request.image, request, Image.Resampling.LANCZOS)
        if self._vae is None:
            return sample_of(picture, self.info.shape, self.info.data_range, "image")
        pixels = sample_of(picture, (3, *self.size[::-1]), (-1.0, 1.0), "image")
        latents: Array = self._vae.encode(pixels[None])[0][0]
        return latents

    def _given_mask(self, request: PromptRequest) -> Array | None:
        if request.mask is None:
            return None
        picture = self._scaled(request.mask, request, Image.Resampling.NEAREST)
        return mask_of(picture, (1, *self.size[::-1]), self._cell, "mask")

    def _scaled(self, picture: Image.Image, request: PromptRequest, filter: Image.Resampling) -> Image.Image:
        """A picture of the model's size, if the request names one; otherwise it has to have it."""
        return picture if request.width is None else picture.resize(self.size, filter)

    def _class(self, name: str, text: str | None) -> Any:
        """The class of a prompt, by its name or its number; None, the null value, of an empty one."""
        if not text:
            return None
        if self._cond is None:
            raise ValueError(f"{name} must be empty for this model, which takes no conditioning, got {brief(text)}")
        is_number = text.isdecimal() and text not in self._cond.names and len(text) < 20
        return self._cond.value(name, int(text) if is_number else text)

    def _record(self, asked: Request) -> Provenance:
        """How the picture of a request is drawn."""
        assert asked.table is not None
        assert asked.seed is not None
        return record(
            self._engine.model,
            asked.table,
            asked.seed,
            schedule=self.info.schedule,
            max_rows=self.serving.row_limit,
            strength=asked.strength,
            image=asked.image,
            mask=asked.mask,
            cond=conditions(self._engine, asked.cond, 1),
            negative_cond=conditions(self._engine, asked.negative_cond, 1),
        )

    def _picture(self, made: Provenance, entries: dict[str, str], sample: Array) -> Pictures:
        """The picture of a sample."""
        return Pictures(self._pixels(sample[None]), sample[None], [entries], [made.seed], [made])

    def _pixels(self, samples: Array) -> Array:
        if self._vae is None:
            return to_pixels(samples, self.info.data_range)
        return to_pixels(self._vae.decode(samples), (-1.0, 1.0))


def _shown(pixels: Array) -> Image.Image:
    return Pictures(pixels, np.zeros(0, dtype=np.float32), [{}], [0])[0]
