"""A pipeline's requests as its callers see them: submitted, withdrawn, counted, and ended with the pipeline."""

from __future__ import annotations

import itertools
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import partial

from stepfuse import _core
from stepfuse.arguments import require_seconds
from stepfuse.errors import DeadlineError, EngineClosed, QueueFull
from stepfuse.pipeline.admission import order_of
from stepfuse.pipeline.counts import Counts, PipelineStats
from stepfuse.pipeline.engines import Engines, Shape, seconds_left
from stepfuse.pipeline.job import PictureJob
from stepfuse.pipeline.job_queue import JobQueue
from stepfuse.pipeline.pictures import Pictures
from stepfuse.pipeline.preparation import Preparation, Prepared
from stepfuse.pipeline.preview import PicturePreview
from stepfuse.pipeline.prompts import PromptEncoder
from stepfuse.pipeline.stages import Stages, decode_pictures
from stepfuse.pipeline.vae import Vae
from stepfuse.requests.terms import Terms
from stepfuse.serving.at_exit import GRACE, close_at_exit
from stepfuse.serving.config import Serving
from stepfuse.serving.future import RequestFuture
from stepfuse.serving.stream import Latest
from stepfuse.serving.tracing import current_context

logger = logging.getLogger("stepfuse")


class PictureService:
    """Calls from any thread are safe; those that wait are refused on the threads of its own stages.

    Args:
        engines: Of the denoiser, closed with this.
        preparation: Encodes requests.
        prompts: The text encoder, closed with this.
        vae: Decodes, closed with this.
        serving_of: How an engine of this shape is shared.
        max_queue: Most requests that wait to begin.
    """

    def __init__(
        self,
        engines: Engines,
        preparation: Preparation,
        prompts: PromptEncoder,
        vae: Vae,
        serving_of: Callable[[Shape], Serving],
        max_queue: int,
    ) -> None:
        self._engines = engines
        self._prompts, self._vae = prompts, vae
        self._serving_of = serving_of
        self._counts = Counts(engines.totals().latency_seconds.bounds)
        self._calls: weakref.WeakSet[_Call] = weakref.WeakSet()  # weak: Ctrl-C may come before a call can say it ends
        self._numbers = itertools.count(1)
        self._pid = os.getpid()
        self.interrupted = False
        self._jobs = JobQueue(max_queue)
        self._stages = Stages(engines, preparation, partial(decode_pictures, vae), serving_of, self._jobs, self._counts)
        close_at_exit(self)

    def new_id(self) -> int:
        """A number for one request."""
        return next(self._numbers)

    def submit(
        self,
        number: int,
        prepared: Prepared,
        facts: Mapping[str, str],
        terms: Terms,
        *,
        wait: float,
        latest: Latest[PicturePreview] | None = None,
    ) -> RequestFuture[Pictures]:
        """Queues one picture.

        Args:
            number: Of ``new_id``.
            prepared: What is drawn.
            facts: How, as text entries of the picture.
            terms: The request's.
            wait: Seconds to wait for room in the queue; on a stage's own thread there is no waiting.
            latest: Takes previews.

        Raises:
            QueueFull: If there was no room.
            DeadlineError: If its deadline cannot be met.
            ValueError: If its deadline has passed.
            EngineClosed: If the pipeline is closed.
            RuntimeError: If a stage has no thread, and none can be started.
        """
        self.require_open()
        self.interrupted = False
        self._stages.ensure()
        order = order_of(
            self._serving_of(prepared.shape),
            terms,
            passes=prepared.run.passes,
            passes_before=lambda: self._engines.totals().network_passes,
            number=number,
        )
        future: RequestFuture[Pictures] = RequestFuture(self, number)
        stages = self._stages
        job = PictureJob(
            number,
            prepared,
            facts,
            terms,
            order,
            current_context(),
            future,
            latest,
            stages.on_preview,
            stages.on_denoised,
        )
        self._require_in_time(job)
        try:
            self._enter(job, 0.0 if stages.is_current else wait)
        except BaseException:  # Ctrl-C may come when it is queued already
            self.cancel([number])
            raise
        return future

    def _enter(self, job: PictureJob, wait: float) -> None:
        self._counts.add("submitted")
        try:
            self._jobs.enter(job, wait)
        except QueueFull:
            self._counts.add("submitted", -1)
            self._counts.add("queue_refusals")
            raise
        self._stages.wake()
        if self._stages.phase != _core.Phase.Open and self._jobs.take(job.number) is not None:  # closed meanwhile
            self._counts.add("submitted", -1)
            raise EngineClosed("the pipeline is closed")

    def _require_in_time(self, job: PictureJob) -> None:
        """Refuses a deadline that cannot be met by the forwards so far; with nothing in line none is refused.

        Raises:
            ValueError: If it has passed.
            DeadlineError: If it cannot be met.
        """
        if job.terms.deadline is None:
            return
        left = job.terms.deadline - time.monotonic()
        if left <= 0:
            raise ValueError(f"deadline must lie ahead on time.monotonic(), it passed {-left:.3f} s ago")
        ahead = [one for one in self._jobs.jobs if one.order < job.order]
        stats = self._engines.totals()
        if not ahead or not stats.network_passes:
            return
        passes = sum(one.prepared.run.passes * (1 - one.done / one.steps) for one in ahead)
        forwards = passes * stats.forwards / stats.network_passes + job.steps
        needed = forwards * stats.forward_seconds.sum / stats.forwards
        if needed > left:
            self._counts.add("deadline_refusals")
            raise DeadlineError(
                f"the deadline cannot be met: it is {left:.3f} s away, the estimate is {needed:.3f} s, with"
                f" {round(passes)} network passes to be computed first"
            )

    def cancel(self, ids: Iterable[int]) -> None:
        """Withdraws requests, whichever stage they are in; those that have ended are left as they are."""
        for number in ids:
            self._stages.withdraw(number, lambda job: CancelledError())

    def lease(self, ids: Sequence[int]) -> object:
        """Withdraws these requests when it is let go."""
        return _Lease(self, ids)

    @contextmanager
    def counted(self, n: int) -> Iterator[Callable[[], None]]:
        """A call for n pictures that runs on its caller's thread; what it yields notes that they are encoded."""
        began, call = time.monotonic(), _Call(n)
        try:
            self._calls.add(call)
            self.interrupted = False
            self._counts.add("submitted", n)
            with self.awaited():
                yield lambda: self._counts.observe("wait_seconds", time.monotonic() - began, n)
        except BaseException as error:
            given_up = not isinstance(error, Exception) or isinstance(error, EngineClosed)
            self._counts.add("cancelled" if given_up else "failures", n)
            raise
        finally:
            self._calls.discard(call)
        self._counts.add("samples", n)
        self._counts.observe("latency_seconds", time.monotonic() - began, n)

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """A caller's wait: notes if Ctrl-C ends it, so that the interpreter's exit gives up what is left."""
        try:
            yield
        except KeyboardInterrupt:
            self.interrupted = True
            raise

    def stats(self) -> PipelineStats:
        """What it has counted."""
        waiting, jobs, calls = len(self._jobs.waiting), len(self._jobs.jobs), sum(call.n for call in list(self._calls))
        return PipelineStats(
            **{
                **self._engines.totals(),
                **self._counts.stats(),
                "waiting": waiting,
                "running": max(jobs - waiting, 0) + calls,
            },
            text_encoder_seconds=self._prompts.seconds,
            vae_encoder_seconds=self._vae.encoder_seconds,
            vae_decoder_seconds=self._vae.decoder_seconds,
        )

    def require_open(self) -> None:
        """Refuses a call when the pipeline takes none.

        Raises:
            EngineClosed: If it is closed.
            RuntimeError: In a forked process.
        """
        self._require_own_process()
        if self._stages.phase != _core.Phase.Open:
            raise EngineClosed("the pipeline is closed")

    def require_other_thread(self) -> None:
        """Refuses a call that would wait for itself.

        Raises:
            RuntimeError: If called on the thread of a stage, or in a forked process.
        """
        self._require_own_process()
        if self._stages.is_current:
            raise RuntimeError(
                "the pipeline is running on this thread: the callbacks of its futures may submit to it, but neither"
                " wait for it nor close it"
            )

    def _require_own_process(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError(
                f"the pipeline belongs to process {self._pid}, this is its fork {os.getpid()}: load it after the fork"
            )

    def refuse(self, *, abort: bool = False) -> None:
        """Takes no more requests; those that it has are finished, or with ``abort`` given up. Waits for nothing."""
        if self._pid != os.getpid():
            return
        if not abort:
            if self._stages.phase == _core.Phase.Open:
                self._stages.phase = _core.Phase.Draining
        else:
            self._stages.phase = _core.Phase.Aborting
            for job in self._jobs.jobs:
                self._stages.withdraw(job.number, PictureJob.closed)
            self._engines.refuse(abort=True)
        self._stages.wake()

    def close(self, *, abort: bool = False, timeout: float | None = None) -> None:
        """Finishes what was submitted, or gives it up, then frees the networks; ``TextToImage.close`` says more."""
        require_seconds("timeout", timeout)
        if self._pid != os.getpid():
            return
        self.require_other_thread()
        self._engines.require_closable()
        with self.awaited():
            until = None if timeout is None else time.monotonic() + timeout
            if not abort:
                self.refuse()
                if self._ended(until):
                    return self._free(abort=False, until=until)
                until = time.monotonic() + GRACE
            self.refuse(abort=True)
            if not self._ended(until):
                logger.error("the pipeline was closed while a stage was still running: its thread is abandoned")
            self._free(abort=True, until=until)

    def _ended(self, until: float | None) -> bool:
        return self._stages.encoder.ended(until) and self._stages.decoder.ended(until)

    def _free(self, *, abort: bool, until: float | None) -> None:
        self._engines.close(abort=abort, timeout=seconds_left(until))
        self._prompts.close()
        self._vae.close()


class _Call:
    """A call in progress, for n pictures."""

    def __init__(self, n: int) -> None:
        self.n = n


class _Lease:
    """Withdraws requests when it is let go."""

    _ids: Sequence[int] = ()

    def __init__(self, service: PictureService, ids: Sequence[int]) -> None:
        self._service = service
        self._ids = ids

    def __del__(self) -> None:
        if self._ids:  # else Ctrl-C came before it was made
            self._service.cancel(self._ids)
