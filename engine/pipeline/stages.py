"""What becomes of a request: it is encoded, denoised and decoded, each stage on a thread of its own."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from stepfuse import _core
from stepfuse.backends.device_samples import DeviceSample
from stepfuse.engine import Engine, Withdraw
from stepfuse.errors import DeadlineError, EngineClosed, RequestTimeout
from stepfuse.pipeline.admission import next_to_encode
from stepfuse.pipeline.counts import Counts
from stepfuse.pipeline.engines import Engines, Shape
from stepfuse.pipeline.job import PictureJob
from stepfuse.pipeline.job_queue import JobQueue
from stepfuse.pipeline.pictures import Array, Pictures, to_pixels
from stepfuse.pipeline.preparation import Preparation
from stepfuse.pipeline.preview import PicturePreview
from stepfuse.pipeline.stage import Interrupt
from stepfuse.pipeline.stage_thread import StageThread
from stepfuse.pipeline.vae import Vae
from stepfuse.requests.request import Request
from stepfuse.serving.config import Serving
from stepfuse.serving.in_flight import Progress
from stepfuse.serving.reporting import record_end


def decode_pictures(
    vae: Vae,
    latents: Array,
    facts: Sequence[Mapping[str, str]],
    seeds: Sequence[int],
    interrupt: Interrupt | None = None,
    on_device: Sequence[DeviceSample | None] | None = None,
) -> Pictures:
    """Pictures of samples (n, C, h, w), with how each is made and their seeds; ``on_device`` as in ``Vae.decode``.

    Raises:
        DenoiserError: If the decoder fails, or ``interrupt`` gives it up.
        EngineClosed: If the pipeline is closed.
    """
    pixels = to_pixels(vae.decode(latents, interrupt, on_device), (-1.0, 1.0))
    return Pictures(pixels, latents, facts, seeds)


class Stages:
    """Takes requests through the pipeline. No caller's thread waits here, nor is one needed for each request.

    One thread encodes, the next in line as the denoiser can take it; one decodes; engines denoise on theirs.

    Args:
        engines: Of the denoiser.
        preparation: Encodes.
        decode: ``decode_pictures`` of the pipeline's VAE.
        serving_of: How an engine of this shape is shared.
        jobs: Where requests are.
        counts: Of requests.
    """

    def __init__(
        self,
        engines: Engines,
        preparation: Preparation,
        decode: Callable[..., Pictures],
        serving_of: Callable[[Shape], Serving],
        jobs: JobQueue,
        counts: Counts,
    ) -> None:
        self._engines = engines
        self._preparation = preparation
        self._decode = decode
        self._serving_of = serving_of
        self._jobs = jobs
        self._counts = counts
        self.phase = _core.Phase.Open
        self.encoder = StageThread("stepfuse-encode")
        self.decoder = StageThread("stepfuse-decode")
        self._denoised: queue.SimpleQueue[PictureJob] = queue.SimpleQueue()

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is of a stage."""
        return self.encoder.is_current or self.decoder.is_current

    def ensure(self) -> None:
        """Has both threads run.

        Raises:
            RuntimeError: If the system has none left.
        """
        self.encoder.ensure(partial(self._guarded, self._encode_all))
        self.decoder.ensure(partial(self._guarded, self._decode_all))

    def wake(self) -> None:
        """Has both threads look at what there is to do."""
        self.encoder.wake()
        self.decoder.wake()

    def end(self, number: int, pictures: Pictures | None = None, error: BaseException | None = None) -> bool:
        """Ends a request with its picture or an error, on this thread; False if it has ended."""
        job = self._jobs.take(number)
        if job is None:
            return False
        now = time.monotonic()
        if error is None:
            self._counts.add("samples")
            self._counts.observe("latency_seconds", now - job.submitted)
            if job.terms.deadline is not None and now > job.terms.deadline:
                self._counts.add("deadline_misses")
        else:
            kind = _outcome(error)
            self._counts.add("failures" if kind == "failed" else kind)
            if job.withdraw is None or job.denoised is not None:  # else the engine reports it
                record_end(job.name, job.prepared.run, job.context, kind, error, now - job.submitted, 0.0)
        job.settle(pictures, error)
        self.wake()
        return True

    def withdraw(self, number: int, error: Callable[[PictureJob], BaseException]) -> None:
        """Ends a request in whichever stage it is."""
        job = self._jobs.find(number)
        if job is not None and self.end(number, error=error(job)):
            job.interrupt.set()
            if (withdraw := job.withdraw) is not None:
                withdraw()

    def _guarded(self, run: Callable[[], None]) -> None:
        """Fails all requests if a stage does, by a bug of ours: no caller may be left waiting."""
        try:
            run()
        except BaseException as error:
            for job in self._jobs.jobs:
                self.end(job.number, error=error)
            raise
        finally:
            self.wake()

    def _encode_all(self) -> None:
        while self.phase == _core.Phase.Open or self._jobs.waiting:
            expiry = self._expire()
            waiting, in_flight = self._jobs.waiting, self._jobs.in_flight
            first = next_to_encode(waiting, in_flight, self._most_running, self._engines.fits)
            if first is None:
                self.encoder.wait(expiry)
            elif self._jobs.begin(first):
                self._encode(first)

    def _expire(self) -> float | None:
        """Gives up requests whose time is over, whichever stage they are in; when the next one's is."""
        now, expiry = time.monotonic(), None
        for job in self._jobs.jobs:
            if job.has_expired(now):
                self.withdraw(job.number, PictureJob.timed_out)
            elif job.expires is not None:
                expiry = job.expires if expiry is None else min(job.expires, expiry)
        return expiry

    def _most_running(self, shape: Shape) -> int:
        return self._serving_of(shape).most_running

    def _encode(self, job: PictureJob) -> None:
        """Encodes a request and hands it to the denoiser."""
        with ExitStack() as held:
            try:
                engine = held.enter_context(self._engines.use(job.shape))
                request = self._encoded(job)
                if job in self._jobs:
                    self._counts.observe("wait_seconds", time.monotonic() - job.submitted)
                    job.release = held.pop_all().close
                    job.withdraw = _denoise(job, engine, request)
                    if job not in self._jobs:  # withdrawn meanwhile
                        job.withdraw()
                    return
            except BaseException as error:
                self.end(job.number, error=error)
            job.release()
        self._jobs.land(job)

    def _encoded(self, job: PictureJob) -> Request:
        """The denoiser's request.

        Raises:
            RequestTimeout: If its time is over.
            Exception: As ``Preparation.encode`` does.
        """
        found = self._preparation.encode(job.prepared, job.interrupt)
        one: dict[str, Any] = {
            name: None if found[name] is None else found[name][0] for name in ("seed", "noise", "image", "mask")
        }
        cond, negative = ({name: rows[0] for name, rows in (found[key] or {}).items()} for key in _CONDITIONING)
        now = time.monotonic()
        if job.has_expired(now):
            raise job.timed_out()
        return Request(
            cond=cond,
            negative_cond=negative or None,
            table=found["table"],
            strength=found["strength"],
            lora=found["lora"],
            priority=job.terms.priority,
            timeout=None if job.expires is None else job.expires - now,
            id=job.name,
            **one,
        )

    def on_preview(self, job: PictureJob, progress: Progress) -> None:
        """Publishes a preview, which is decoded if its reader asks for it. Called on the engine's thread."""
        assert job.latest is not None
        assert progress.sample.x0 is not None
        x0 = progress.sample.x0.copy()
        facts = {**job.facts, "preview": f"step {progress.step} of {job.steps}"}
        decode = partial(self._decode, x0[None], [facts], job.prepared.seeds)
        job.latest.publish(PicturePreview(progress.step, job.steps, x0, decode))

    def on_denoised(self, job: PictureJob) -> None:
        """Hands it to the decoder. Called on the engine's thread."""
        self._denoised.put(job)
        self.decoder.wake()

    def _decode_all(self) -> None:
        ready: list[PictureJob] = []
        while True:
            with suppress(queue.Empty):
                while True:
                    ready.append(self._denoised.get_nowait())
            if ready:
                job = min(ready, key=lambda one: one.order)
                ready.remove(job)
                self._decode_one(job)
            elif self.phase != _core.Phase.Open and not self._jobs.jobs and not self._jobs.in_flight:
                return
            else:
                self.decoder.wait(None)

    def _decode_one(self, job: PictureJob) -> None:
        job.release()
        assert job.denoised is not None
        (sample, on_device, error), pictures = job.denoised, None
        if isinstance(error, RequestTimeout):  # by the engine's clock
            error = job.timed_out()
        elif isinstance(error, EngineClosed):
            error = job.closed()
        elif error is None and job in self._jobs:
            try:
                pictures = self._decode(sample[None], [job.facts], job.prepared.seeds, job.interrupt, [on_device])
            except BaseException as failure:
                error = failure
        self._jobs.land(job)
        self.end(job.number, pictures, error)


_CONDITIONING = "cond", "negative_cond"


def _denoise(job: PictureJob, engine: Engine, request: Request) -> Withdraw:
    """Queues a request at the denoiser; one whose deadline cannot be met any more is finished late."""
    deadline, how = job.terms.deadline, {"x0": job.latest is not None, "context": job.context, "on_device": True}
    if deadline is not None and deadline > time.monotonic():
        with suppress(DeadlineError):
            return engine.enqueue(replace(request, deadline=deadline), job, **how)
    return engine.enqueue(request, job, **how)


def _outcome(error: BaseException) -> str:
    if isinstance(error, RequestTimeout):
        return "expired"
    return "cancelled" if isinstance(error, CancelledError | EngineClosed) else "failed"
