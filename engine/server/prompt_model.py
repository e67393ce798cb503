"""A pipeline with prompts behind the service's interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from stepfuse.bundle.identity import ModelIdentity
from stepfuse.lora.adapters import LoraInfo
from stepfuse.pipeline.pictures import Array, Pictures
from stepfuse.pipeline.preview import PicturePreview
from stepfuse.pipeline.size import pixels_of
from stepfuse.pipeline.text_to_image import TextToImage
from stepfuse.requests.prompt_request import PromptRequest
from stepfuse.server.models import Drawing, ServedModel, Watched
from stepfuse.serving.config import CostCurve
from stepfuse.serving.reporting import Observer


class PromptModel(ServedModel):
    """A ``TextToImage``.

    Args:
        name: What clients call it.
        pipe: The pipeline.

    Examples:
        >>> from stepfuse.server import PromptModel, create_app
        >>> app = create_app({"mine": PromptModel("mine", sf.TextToImage.load("my-pipeline"))})
        >>> app.title
        'stepfuse'
    """

    def __init__(self, name: str, pipe: TextToImage) -> None:
        bundle = pipe.bundle
        assert bundle.pipeline is not None
        self._pipe = pipe
        self._controls = bundle.pipeline.controls
        self._any_size = not bundle.pipeline.fixed_size
        size = pixels_of(bundle.pipeline, bundle.info.shape)
        super().__init__(name, bundle.info, ModelIdentity.of(bundle), pipe.serving, size)

    @property
    def loras(self) -> Mapping[str, LoraInfo]:
        """Of the pipeline."""
        return self._pipe.loras

    @property
    def controls(self) -> tuple[str, ...]:
        """Of the pipeline."""
        return self._controls

    def submit(self, request: PromptRequest) -> Drawing:
        """Queues a picture of a prompt."""
        return Drawing(self._pipe.submit(request), lambda pictures: pictures)

    def stream(self, request: PromptRequest) -> Watched:
        """The same, watched."""
        return Watched(self._pipe.stream(request), self._preview, lambda preview: preview.decode())

    def warnings(self, request: PromptRequest) -> list[str]:
        """Of prompts that are cut."""
        texts = (one for one in (request.prompt, request.negative_prompt) if isinstance(one, str))
        return [warning for text in texts for warning in self._pipe.unread(text)]

    def stats(self) -> Mapping[str, Any]:
        """Of all sizes together."""
        return self._pipe.totals()

    def observe(self, observer: Observer | None) -> None:
        """Has the denoiser's iterations reported."""
        self._pipe.observe(observer)

    def warm_up(self, *, calibrate: bool | CostCurve = False) -> None:
        """Draws a picture in one step.

        Raises:
            ValueError: If ``calibrate`` asks for a cost, which an engine alone is planned by.
        """
        if calibrate:
            raise ValueError(f"calibrate must be left out for {self.name}, whose requests are planned without a cost")
        assert self._pipe.bundle.pipeline is not None
        given: dict[str, Any] = {}
        if self._pipe.bundle.pipeline.masked_input is not None:
            width, height = self.size
            given = {"image": np.full((height, width, 3), 0.5, dtype=np.float32), "mask": np.ones((height, width))}
        request = PromptRequest("", sampler="euler", steps=1, seed=0, **given)  # euler: on any schedule
        self._pipe.submit(request).result()

    def close(self, *, abort: bool = False, timeout: float | None = None) -> None:
        """Ends the pipeline."""
        self._pipe.close(abort=abort, timeout=timeout)

    def _preview(self, preview: PicturePreview) -> Image.Image:
        """The clean estimate at half its size, whose decoding costs a quarter, where the decoder takes other sizes."""
        x0 = preview.x0
        if not self._any_size or x0.shape[1] % 2 or x0.shape[2] % 2:
            return preview.decode()[0]
        half = _halved(x0)[None]
        return Pictures(self._pipe.decode(half), half, [{}], [0])[0]


def _halved(x0: Array) -> Array:
    """Each 2 x 2 cells as their mean, (C, h, w) to (C, h / 2, w / 2)."""
    channels, height, width = x0.shape
    halved: Array = x0.reshape(channels, height // 2, 2, width // 2, 2).mean(axis=(2, 4))
    return halved
