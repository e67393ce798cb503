"""The services that ``http_load.py`` compares with, as people write them: diffusers behind FastAPI.

    python benchmarks/http_peers.py locked fashion --port 8001     # a request at a time, behind a lock
    python benchmarks/http_peers.py batched fashion --port 8001    # static batches of equal steps and scale

Both run the bundle's own network file in ONNX Runtime under diffusers' schedulers, from the noise that stepfuse draws
for the seed, so that their pictures are the same.
"""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
import uvicorn
from fastapi import FastAPI
from load import Asked
from PIL import Image
from pydantic import BaseModel
from queued_diffusers import Diffusers, Images

import stepfuse as sf

MOST_TOGETHER, WINDOW_SECONDS = 8, 0.02  # as many requests a batch, as long from the first one's arrival


class Generation(BaseModel):
    """What of OpenAI's body these services read."""

    prompt: str
    num_inference_steps: int
    guidance_scale: float
    sampler: str
    seed: int

    def asked(self) -> Asked:
        """As the pipeline takes it."""
        rows = 1 if self.guidance_scale == 1 else 2
        return Asked(self.sampler, self.num_inference_steps, rows, int(self.prompt), self.seed)


class Pipeline:
    """diffusers' loop around the network; one call at a time."""

    def __init__(self, bundle: str, threads: int) -> None:
        torch.set_num_threads(1)  # tensors of 784 numbers: more threads would take longer
        self._diffusers = Diffusers(bundle, threads)
        self(*[Asked("ddim", 2, rows=2, label=0, seed=0)] * 2)

    def __call__(self, *asked: Asked) -> list[Image.Image]:
        """The pictures of requests of equal sampler, steps and scale."""
        noise = np.stack([sf.normal(one.seed, self._diffusers.shape) for one in asked])
        return [_image(sample) for sample in self._diffusers.batch(asked, noise)]


def _image(sample: Images) -> Image.Image:
    levels = (np.clip((sample + 1) / 2, 0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0))


def answer(image: Image.Image) -> dict[str, Any]:
    """A picture as OpenAI's service answers it."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return {"created": int(time.time()), "data": [{"b64_json": base64.b64encode(file.getvalue()).decode()}]}


def with_lock(pipeline: Callable[..., list[Image.Image]]) -> FastAPI:
    """A request at a time: the framework's threads wait for a lock."""
    app, lock = _app(), threading.Lock()

    @app.post("/v1/images/generations")
    def generate(given: Generation) -> dict[str, Any]:
        with lock:
            [image] = pipeline(given.asked())
        return answer(image)

    return app


@dataclass(eq=False)
class Waiting:
    """A request that waits for its batch."""

    asked: Asked
    at: float = field(default_factory=time.monotonic)
    image: asyncio.Future[Image.Image] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def kind(self) -> tuple[str, int, float]:
        """What members of a batch have in common."""
        return self.asked.sampler, self.asked.steps, self.asked.guidance_scale


class Batches:
    """Requests of a kind that come within a window are drawn together, the kind of the oldest one first.

    Args:
        run: Draws a batch.
        most: Requests of a batch.
        window: Seconds that a batch waits for more, from its first member's arrival.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Asked]], Awaitable[list[Image.Image]]],
        *,
        most: int = MOST_TOGETHER,
        window: float = WINDOW_SECONDS,
    ) -> None:
        self._run, self._most, self._window = run, most, window
        self._waiting: list[Waiting] = []
        self._come = asyncio.Event()

    async def draw(self, asked: Asked) -> Image.Image:
        """Waits for the picture of a request."""
        one = Waiting(asked)
        self._waiting.append(one)
        self._come.set()
        return await one.image

    async def serve(self) -> None:
        """Runs batch after batch, until it is cancelled."""
        while True:
            batch = await self._next()
            self._waiting = [one for one in self._waiting if one not in batch]
            images = await self._run([one.asked for one in batch])
            for one, image in zip(batch, images, strict=True):
                if not one.image.done():
                    one.image.set_result(image)

    async def _next(self) -> list[Waiting]:
        while True:
            self._come.clear()
            if self._waiting:
                oldest = self._waiting[0]
                batch = [one for one in self._waiting if one.kind == oldest.kind][: self._most]
                left = oldest.at + self._window - time.monotonic()
                if len(batch) == self._most or left <= 0:
                    return batch
                try:
                    await asyncio.wait_for(self._come.wait(), left)
                except asyncio.TimeoutError:
                    return batch
            else:
                await self._come.wait()


def with_batches(pipeline: Callable[..., list[Image.Image]]) -> FastAPI:
    """Static batches, drawn on a worker thread."""
    app = _app()
    batches = Batches(lambda asked: asyncio.to_thread(pipeline, *asked))
    serving: set[asyncio.Task[None]] = set()

    @app.post("/v1/images/generations")
    async def generate(given: Generation) -> dict[str, Any]:
        if not serving:
            serving.add(asyncio.create_task(batches.serve()))
        return answer(await batches.draw(given.asked()))

    return app


def _app() -> FastAPI:
    app = FastAPI()

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    return app


def main(
    kind: Literal["locked", "batched"],
    bundle: str,
    port: Annotated[int, typer.Option()],
    threads: Annotated[int, typer.Option()] = 0,
) -> None:
    """Serves until SIGTERM."""
    app = (with_lock if kind == "locked" else with_batches)(Pipeline(bundle, threads))
    uvicorn.run(app, port=port, access_log=False, log_level="warning")


if __name__ == "__main__":
    typer.run(main)
