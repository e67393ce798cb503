"""The engine: a network and a loop, and what a user calls."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, NoReturn, cast

import numpy.typing as npt

from stepfuse import samplers
from stepfuse.backends.base import Denoiser, Place
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.constructors import Constructors
from stepfuse.requests.editing import as_images
from stepfuse.requests.interpolation import Path, interpolate_noise
from stepfuse.requests.request import Request
from stepfuse.requests.resolution import (
    Compiler,
    default_options,
    default_steps,
    require_guidable,
    resolve,
    starting_state,
)
from stepfuse.samplers.coefficients import PredictionType
from stepfuse.samplers.table import StepTable
from stepfuse.serving.batch import Batch, Callback, Looks, StateCallback
from stepfuse.serving.calibration import measure_cost
from stepfuse.serving.config import CostCurve, Serving
from stepfuse.serving.future import ImageFuture, as_completed
from stepfuse.serving.inflight import Images
from stepfuse.serving.service import Service
from stepfuse.serving.stream import Stream

#: Whether every engine checks its loop's invariants after each turn: slow, for tests.
CHECK_INVARIANTS = False


class Engine(Constructors):
    """Draws samples from one network. A context manager, or to be closed.

    Calls from any number of threads are safe. One thread of the engine's own runs the network and the loop: requests
    join and leave it between steps, and share its forwards whatever their samplers, steps and guidance scales.
    """

    def __init__(self, info: ModelInfo, place: Place, serving: Serving) -> None:
        self.info = info
        self.serving = serving
        self._compiler = Compiler(info)
        self._service = Service(info, place, serving, check=CHECK_INVARIANTS)

    def sample(
        self,
        n: int = 1,
        *,
        cond: Any = None,
        negative_cond: Any = None,
        sampler: str | Sequence[str] | None = None,
        steps: int | Sequence[int] | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        eta: float | Sequence[float] | None = None,
        seed: int | Sequence[int] | None = None,
        table: StepTable | Sequence[StepTable] | None = None,
        noise: npt.ArrayLike | None = None,
        image: npt.ArrayLike | None = None,
        mask: npt.ArrayLike | None = None,
        strength: float | Sequence[float] | None = None,
        progress: bool = False,
        callback: Callback | None = None,
        on_state: StateCallback | None = None,
        **options: Any,
    ) -> Images:
        """Draws ``n`` samples. Every argument up to ``table`` is one value for all, or a sequence of one each.

        Args:
            n: Number of samples.
            cond: What the network is told: a class name or index, an array, or None for nothing, where it has one
                conditioning input; a dict of these by name otherwise.
            negative_cond: What the unconditional pass of guidance is told, as ``cond``; None is the null value.
            sampler: A name of ``stepfuse.samplers.SAMPLERS``; None is the model's default.
            steps: Number of steps S; None is the model's default, and T for ``ddpm``.
            guidance_scale: Classifier-free guidance, at least 0; None is the model's default. Samples that are told
                nothing cost one pass a step whatever it is.
            eta: DDIM's share of added noise, 0 to 1.
            seed: 0 to 2^64 - 1. With one seed s for all, sample i has seed s + i; None draws one.
            table: A compiled sampler, instead of the four arguments above.
            noise: Starting noise, shape (n, *shape), standard normal; None draws it from the seed.
            image: What the samples begin as, noised (image to image; Meng et al., 2022), or what ``mask`` keeps of
                them: one of the model's shape for all, or (n, *shape), floating point, in the model's data range.
            mask: 1 where ``image`` is to be drawn anew, 0 where it is kept, between to blend; of the model's shape or
                one plane (H, W) for all channels, with n in front for one a sample. What is kept is put back, noised
                to the state's level, after every step (Lugmayr et al., 2022, Eq. 8a).
            strength: Share of the steps that an image leaves to be done, above 0 to 1, one value or one a sample. Left
                out it is 0.8, and 1 with a mask, where 1 begins as noise alone.
            progress: Whether a bar is shown.
            callback: Called in this thread after each forward that any of the samples stepped in, with the number of
                these, how many there will be (an estimate while others use the engine) and the clean samples implied so
                far, shape (n, *shape), zero where one has not begun. The samples rest meanwhile. If it returns False or
                raises StopIteration, the run stops and that preview is returned.
            on_state: Called like ``callback``, before it, with the states themselves in place of the preview, shape
                (n, *shape), which it may change in place: the next forward sees the change.
            **options: The sampler's own: ``spacing``, ``clip``, ``variance``, ``karras``, ..., and what every sampler
                takes: ``guidance_interval``, and ``guidance_rescale`` and ``dynamic_threshold`` of ``StepTable.adapt``.

        Returns:
            Shape (n, *shape), float32, in the model's data range.

        Raises:
            ValueError: If a bound is broken; the message carries the value received.
            TypeError: If an argument is of the wrong kind.
            DenoiserError: If the network returns a wrong shape or a number that is not finite, or ONNX Runtime fails.
                What a Python function raises comes through as it is.
            RuntimeError: If the engine is closed.
        """
        requests = resolve(
            self._compiler,
            n,
            cond=cond,
            negative_cond=negative_cond,
            seed=seed,
            table=table,
            sampler=sampler,
            steps=steps,
            guidance_scale=guidance_scale,
            eta=eta,
            image=image,
            mask=mask,
            strength=strength,
            options=options,
        )
        self._service.require_other_thread()
        x = starting_state((len(requests), *self.info.shape), noise)
        turns = self._service.turns_alone(requests) if progress or callback or on_state else 0
        looks = Looks(progress, callback, on_state)
        return Batch(self._service, requests, x, noise is not None, turns=turns, looks=looks).run()

    def submit(self, request: Request, *, wait: float = 0.0) -> Future[Images]:
        """Queues one image to be drawn with whatever else is drawn then.

        Args:
            request: What to draw.
            wait: Seconds to wait for room in the queue.

        Returns:
            Holds the image, shape ``info.shape``, or the exception that drawing it alone would raise. Cancelling works
            until it is there: the request leaves between two steps. What is added with ``add_done_callback`` runs on
            the engine's thread, which waits for it.

        Raises:
            ValueError: If a bound is broken; the message carries the value received.
            TypeError: If an argument is of the wrong kind.
            QueueFull: If ``serving.max_queue`` requests wait to begin.
            DeadlineError: If the deadline cannot be met, by ``calibrate``'s costs or those of the forwards of late.
            EngineClosed: If the engine is closed.
        """
        future = ImageFuture(self._service)
        future.submit(self._compiler.one(request), *self._state(request), _checked_wait(wait))
        return future

    def stream(self, request: Request, *, wait: float = 0.0) -> Stream:
        """Queues one image and gives previews of it as it comes into being, the last one the image itself.

        Args:
            request: What to draw.
            wait: Seconds to wait for room in the queue.

        Returns:
            To be walked with ``for`` or ``async for``. A slow reader misses previews and holds nothing up.

        Raises:
            Exception: As ``submit`` does; walking it raises what the future of ``submit`` would hold.
        """
        stream = Stream(self._service)
        stream.submit(self._compiler.one(request), *self._state(request), _checked_wait(wait))
        return stream

    def as_completed(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Future[Images]]]:
        """Draws any number of requests and yields each as it ends, with its settled future.

        They are taken from ``requests`` as room becomes free: an endless iterator is fine. The future of one that
        ``submit`` refuses holds the refusal. Leaving the loop early withdraws what has not ended.
        """
        self._service.require_other_thread()
        return as_completed(lambda request: self.submit(request, wait=math.inf), requests, self.serving.max_queue)

    async def asample(self, **arguments: Any) -> Images:
        """One image, awaited: ``submit`` of a ``Request`` with these arguments. It does not wait for room in the queue.

        Returns:
            Shape ``info.shape``, float32.

        Raises:
            Exception: As ``submit`` and ``sample`` do.
        """
        import asyncio  # slow to import, and needed here alone

        return await asyncio.wrap_future(self.submit(Request(**arguments)))

    def encode(
        self,
        images: npt.ArrayLike,
        *,
        steps: int | None = None,
        cond: Any = None,
        guidance_scale: float = 1.0,
        refinements: int = 1,
        progress: bool = False,
        **options: Any,
    ) -> Images:
        """Finds the noise that each image comes from, by DDIM backwards.

        ``engine.sample(n, noise=z, sampler="ddim", steps=steps, cond=cond, guidance_scale=guidance_scale)`` with the
        same arguments returns the images, up to an error that falls with ``steps`` and with ``refinements``.

        Args:
            images: Shape (n, *shape), floating point, in the model's data range.
            steps: DDIM steps to invert; None is the model's default.
            cond: What the network is told, as in ``sample``.
            guidance_scale: As in ``sample``; 1 inverts best.
            refinements: Further network evaluations a step, towards its exact inverse; 0 is plain DDIM inversion.
            progress: Whether a bar is shown.
            **options: More of ``samplers.ddim_inverse``: ``spacing``, ``timesteps``, ... What is not said here is the
                model's default.

        Returns:
            Noise of shape (n, *shape), float32.

        Raises:
            ValueError: If a bound is broken; the message carries the value received.
            TypeError: If an argument is of the wrong kind.
            DenoiserError: As in ``sample``.
        """
        require_guidable(self.info, guidance_scale)
        given = as_images(self.info, images, "images")
        if steps is None and options.get("timesteps") is None:
            steps = default_steps(self.info, "ddim")
        table = samplers.ddim_inverse(
            self.info.schedule,
            steps,
            prediction_type=cast("PredictionType", self.info.prediction_type),
            refinements=refinements,
            guidance_scale=guidance_scale,
            **{**default_options(self.info, samplers.ddim_inverse), **options},
        )
        return self.sample(len(given), cond=cond, table=table, noise=given, seed=0, progress=progress)

    def interpolate(
        self, z0: npt.ArrayLike, z1: npt.ArrayLike, n: int = 10, *, path: Path = "slerp", **arguments: Any
    ) -> Images:
        """Samples along a walk from one noise to another, both included.

        Args:
            z0: Noise of one sample, the model's shape.
            z1: The same.
            n: Number of samples, at least 2.
            path: ``slerp`` (great circle) or ``lerp`` (straight line).
            **arguments: Those of ``sample`` but ``noise``. With a deterministic sampler the walk is smooth.

        Returns:
            Shape (n, *shape), float32.

        Raises:
            ValueError: If a bound is broken; the message carries the value received.
        """
        return self.sample(n, noise=interpolate_noise(z0, z1, n, path), **arguments)

    def table(
        self,
        *,
        sampler: str | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        eta: float | None = None,
        **options: Any,
    ) -> StepTable:
        """The table that ``sample`` would run with these arguments on this model.

        Raises:
            ValueError: If a bound is broken; the message carries the value received.
            TypeError: If the sampler does not have one of the options.
        """
        return self._compiler.compile(sampler, steps, guidance_scale, eta, options)

    def warmup(self, rows: Sequence[int] = (1, 2)) -> None:
        """Runs a forward of each of these row counts, so that the first sample does not pay for what is made once.

        Waits until nothing is left to draw: call it before serving.

        Raises:
            ValueError: If a count is below 1 or above ``max_rows``.
            EngineClosed: If the engine is closed.
        """
        limit = self.serving.max_rows
        for count in rows:
            if not 1 <= count <= limit:
                raise ValueError(f"rows must be between 1 and {limit}, got {count}")

        def run(denoiser: Denoiser) -> None:
            for count in rows:
                denoiser.forward(count)

        self._service.run_alone(run)

    def calibrate(self, cost: CostCurve | None = None) -> CostCurve:
        """Has the planner choose how many rows a forward is worth, and deadlines be judged, by the network's cost.

        Without it every forward takes as many rows as there are. Where a row costs much and a forward little, smaller
        forwards answer sooner: a request then waits for fewer others at each step.

        Args:
            cost: What an earlier call on the same machine and network returned; None measures it, on eight forwards
                each of 1, 2, 4, ... ``max_rows`` rows. That waits until nothing is left to draw: call it before
                serving.

        Returns:
            The cost in use from now on.

        Raises:
            EngineClosed: If the engine is closed, and has to measure.
        """
        if cost is None:
            limit = self.serving.max_rows
            cost = self._service.run_alone(lambda denoiser: measure_cost(denoiser.forward, limit))
        self._service.set_cost(cost)
        return cost

    def stats(self) -> dict[str, Any]:
        """Counts since the engine was made, as plain numbers.

        Returns:
            ``submitted``; what became of those: ``samples`` finished, ``failures``, ``cancelled``, ``expired``;
            ``deadline_misses``; ``queue_refusals`` and ``deadline_refusals``, which were not taken; ``waiting`` and
            ``running`` now. Fused ``steps``, ``forwards`` of the network, ``failed_forwards``, ``network_passes`` (the
            rows that were asked for) and ``padded_rows``; ``network_seconds``, ``step_seconds``, ``loop_seconds`` and
            ``telling_seconds`` (callbacks, logs, traces) add up to the busy time. Histograms ``wait_seconds``
            (submission to first step), ``latency_seconds`` (submission to image), ``forward_seconds`` and
            ``forward_rows``, each a dict of ``bounds`` (upper, one fewer),
            ``counts`` and ``sum``.
        """
        return self._service.status()

    def close(self, *, abort: bool = False) -> None:
        """Draws what was submitted, then frees the network; closing twice is fine.

        Args:
            abort: Whether what was submitted is given up instead: its futures raise ``EngineClosed``.

        Raises:
            RuntimeError: If called from the network, a future's own callback, or a callback of ``sample``.
        """
        self._service.close(abort=abort)

    def _state(self, request: Request) -> tuple[Images, bool]:
        return starting_state(self.info.shape, request.noise), request.noise is not None

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._service.closed else f"up to {self.serving.max_rows} rows"
        return f"<Engine {self.info.shape} {self.info.prediction_type}, {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an engine can be neither pickled nor copied: load it in each process")


def _checked_wait(wait: float) -> float:
    if not wait >= 0:
        raise ValueError(f"wait must be at least 0 seconds, got {wait}")
    return wait
