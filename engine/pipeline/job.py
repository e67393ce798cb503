"""A request for a picture between its submission and its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any

from stepfuse.backends.device_samples import DeviceSample
from stepfuse.display import NAME, printable
from stepfuse.engine import Withdraw
from stepfuse.errors import EngineClosed, RequestTimeout
from stepfuse.pipeline.admission import Order
from stepfuse.pipeline.engines import Shape
from stepfuse.pipeline.pictures import Array, Pictures
from stepfuse.pipeline.preparation import Prepared
from stepfuse.pipeline.preview import PicturePreview
from stepfuse.pipeline.stage import Interrupt
from stepfuse.requests.terms import Terms
from stepfuse.serving.future import RequestFuture
from stepfuse.serving.in_flight import Progress
from stepfuse.serving.stream import Latest


@dataclass(eq=False)
class PictureJob:
    """One picture on its way through the stages; the denoiser's result handle.

    Attributes:
        number: Unique in its service.
        prepared: What is drawn.
        facts: How, as text entries of the picture.
        terms: The request's.
        order: Its place in line.
        context: Tracing context of its caller.
        future: Takes the picture.
        latest: Takes previews; None if there is no stream.
        on_preview: Called when the denoiser has done a step for a job with ``latest``.
        on_denoised: Called when the denoiser is done with it; both on the denoiser's thread.
        submitted: When, on ``time.monotonic()``.
        interrupt: Gives up a run of the VAE.
        withdraw: Takes it out of the denoiser; None before it is there.
        release: Lets its engine go.
        done: Steps done.
        denoised: The sample, where it is in a GPU's memory too, and the error if it failed; None before its end in the
            denoiser. Not its ``Progress``, which refers to this: a cycle would keep the picture until the garbage
            collector runs.
    """

    number: int
    prepared: Prepared
    facts: Mapping[str, str]
    terms: Terms
    order: Order
    context: Any
    future: RequestFuture[Pictures]
    latest: Latest[PicturePreview] | None
    on_preview: Callable[[PictureJob, Progress], None]
    on_denoised: Callable[[PictureJob], None]
    submitted: float = field(default_factory=time.monotonic)
    interrupt: Interrupt = field(default_factory=Interrupt)
    withdraw: Withdraw | None = None
    release: Callable[[], None] = lambda: None
    done: int = 0
    denoised: tuple[Array, DeviceSample | None, BaseException | None] | None = None

    @property
    def shape(self) -> Shape:
        """Of its sample, with what else its engine is made for."""
        return self.prepared.network

    @property
    def name(self) -> str:
        """What messages, logs and traces call it."""
        return printable(self.terms.id or self.number, NAME)

    @property
    def steps(self) -> int:
        """That are taken."""
        return len(self.prepared.run)

    @property
    def expires(self) -> float | None:
        """When its timeout is over, on ``time.monotonic()``."""
        return None if self.terms.timeout is None else self.submitted + self.terms.timeout

    def has_expired(self, now: float) -> bool:
        """Whether its timeout is over."""
        return self.expires is not None and now >= self.expires

    def timed_out(self) -> RequestTimeout:
        """The exception of a timeout, which says how far it came."""
        return RequestTimeout(
            f"request {self.name} was not finished within its timeout of {self.terms.timeout:g} s: {self.done} of"
            f" {self.steps} steps are done"
        )

    def closed(self) -> EngineClosed:
        """The exception of a job that its pipeline has given up."""
        return EngineClosed(f"the pipeline was closed before request {self.name} was finished")

    def settle(self, pictures: Pictures | None, error: BaseException | None) -> None:
        """Gives the caller the picture, or the error."""
        self.future.settle(pictures, error)
        if self.latest is None:
            return
        if pictures is None:
            self.latest.fail(error or CancelledError())
        else:
            last = PicturePreview(self.steps, self.steps, pictures.latents[0], lambda: pictures)
            self.latest.publish(last, last=True)

    def on_progress(self, made: Sequence[Progress]) -> None:
        """As a result handle of the denoiser: its end goes to the next stage, since this thread has steps to run."""
        last = made[-1]
        self.done = max(self.done, last.step)
        if last.ended:
            self.denoised = last.sample.x, last.sample.on_device, last.error
            self.on_denoised(self)
        elif self.latest is not None and last.step < self.steps and last.sample.x0 is not None:
            self.on_preview(self, last)
