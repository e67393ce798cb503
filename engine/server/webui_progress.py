"""How far the requests of the web interfaces' routes have come, with the latest preview."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stepfuse.pipeline.pictures import Pictures
from stepfuse.requests.prompt_request import PromptRequest
from stepfuse.server.drawing import watch
from stepfuse.server.encoding import as_base64, preview_file
from stepfuse.server.models import ServedModel, Watched


@dataclass(eq=False)
class Job:
    """A request on its way.

    Attributes:
        began: When, on ``time.monotonic()``.
        watched: Its pictures, once they are queued.
        latest: The latest preview of each.
    """

    began: float = field(default_factory=time.monotonic)
    watched: list[Watched] = field(default_factory=list)
    latest: list[Any] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Of all steps, those done: 0 to 1."""
        shares = [0.0 if one is None else one.step / one.total for one in self.latest]
        return sum(shares) / len(shares) if shares else 0.0


class Jobs:
    """Those of one app, the oldest first. It is used on the app's event loop alone."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []

    async def draw(self, model: ServedModel, requests: Sequence[PromptRequest]) -> list[Pictures]:
        """Draws a request and notes how far it has come; cancelled, it is withdrawn.

        Raises:
            Exception: As ``model.stream`` does.
        """
        job = Job()
        self._jobs.append(job)
        try:
            job.watched = await watch(model, requests)
            job.latest = [None] * len(requests)
            return await asyncio.gather(*(self._followed(job, index) for index in range(len(requests))))
        finally:
            self._jobs.remove(job)
            for one in job.watched:
                one.previews.close()

    async def _followed(self, job: Job, index: int) -> Pictures:
        watched = job.watched[index]
        async for preview in watched.previews:
            job.latest[index] = preview
        return await asyncio.to_thread(watched.finish, job.latest[index])

    async def progress(self, *, with_image: bool) -> dict[str, Any]:
        """What ``GET /sdapi/v1/progress`` answers: of the oldest request, as web interfaces show one at a time."""
        job = self._jobs[0] if self._jobs else Job()
        share, spent = job.share, time.monotonic() - job.began
        shown = next(
            ((i, one) for i, one in enumerate(job.latest) if one is not None and one.step < one.total), (None, None)
        )
        index, preview = shown
        image = None
        if with_image and index is not None:
            image = await asyncio.to_thread(_preview, job.watched[index], preview)
        return {
            "progress": share,
            "eta_relative": spent * (1 - share) / share if share else 0.0,
            "state": {
                "skipped": False,
                "interrupted": False,
                "job": "stepfuse" if self._jobs else "",
                "job_count": len(self._jobs),
                "job_no": 0,
                "sampling_step": 0 if preview is None else preview.step,
                "sampling_steps": 0 if preview is None else preview.total,
            },
            "current_image": image,
            "textinfo": None,
        }


def _preview(watched: Watched, preview: Any) -> str:
    return as_base64(preview_file(watched.preview(preview)))
