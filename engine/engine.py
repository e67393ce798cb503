"""The engine: a network and a loop, and what a user calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from stepfuse import samplers
from stepfuse.backends.buffers import Buffers
from stepfuse.backends.function import DenoiserFunction, FunctionDenoiser
from stepfuse.batcher import Batcher, Job
from stepfuse.bundle import Bundle, ModelInfo
from stepfuse.coefficients import PredictionType
from stepfuse.cond import CondInput
from stepfuse.interpolation import Path, interpolate_noise
from stepfuse.request import Request, compile_table, default_steps, require_guidable, resolve, starting_state
from stepfuse.runner import Callback, Denoiser, Images, Runner
from stepfuse.schedule import NoiseSchedule
from stepfuse.steptable import StepTable

DEFAULT_MAX_ROWS = 64


class Engine:
    """Draws samples from one network. Made by ``load`` or ``from_callable``; a context manager, or to be closed.

    Calls from several threads are safe; they run one after the other.
    """

    def __init__(self, info: ModelInfo, make_denoiser: Callable[[Buffers], Denoiser], *, max_rows: int) -> None:
        self.info = info
        self._runner = Runner(info, make_denoiser, max_rows)
        self._batcher = Batcher(self._runner, info.shape)

    @classmethod
    def load(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        max_rows: int = DEFAULT_MAX_ROWS,
        threads: int = 0,
        spinning: bool = True,
        verify: bool = True,
    ) -> Engine:
        """Loads an embedded model by name or a bundle by path, on ONNX Runtime.

        Args:
            name_or_path: Such as ``"fashion"``, or a folder with a ``manifest.json``.
            max_rows: Most rows of one forward; a guided sample takes two. More samples than fit wait their turn.
            threads: ONNX Runtime's threads inside an operator; 0 is its own choice, a thread a core.
            spinning: Whether its idle threads wait actively: lowest latency, but a busy core.
            verify: Whether checksums are compared; False trusts the files' sizes, which spares reading huge ones twice.

        Raises:
            BundleError: If the bundle cannot be used; the message names file, rule and value.
            ValueError: If ``max_rows`` or ``threads`` is out of bounds.
        """
        if threads < 0:
            raise ValueError(f"threads must be at least 0, got {threads}")
        from stepfuse.backends.onnxruntime import OnnxRuntimeDenoiser

        bundle = Bundle.load(name_or_path, verify=verify)

        def make(buffers: Buffers) -> Denoiser:
            return OnnxRuntimeDenoiser(bundle.denoiser, buffers, threads=threads, spinning=spinning)

        return cls(bundle.info, make, max_rows=max_rows)

    @classmethod
    def from_callable(
        cls,
        fn: DenoiserFunction,
        *,
        shape: tuple[int, ...],
        schedule: NoiseSchedule,
        prediction_type: str = "epsilon",
        cond: Mapping[str, CondInput] | None = None,
        timestep_dtype: str = "float32",
        max_rows: int = DEFAULT_MAX_ROWS,
    ) -> Engine:
        """Makes any Python function the network.

        Args:
            fn: ``fn(x (R, *shape) float32, t (R,), {name: (R, ...)}) -> prediction (R, *shape)``, a row a pass.
            shape: Shape of one sample, without the batch.
            schedule: Noise levels that ``fn`` was made for.
            prediction_type: ``epsilon``, ``v_prediction``, ``sample``, or ``flow`` with a flow schedule.
            cond: Conditioning inputs by name; without them the dict that ``fn`` gets is empty.
            timestep_dtype: ``float32``, or ``int64`` to have timesteps rounded.
            max_rows: Most rows of one call.

        Raises:
            ValueError: If a bound is broken; the message carries the value received.
        """
        info = ModelInfo(tuple(shape), schedule, prediction_type, dict(cond or {}), timestep_dtype)
        return cls(info, lambda buffers: FunctionDenoiser(fn, buffers), max_rows=max_rows)

    def sample(
        self,
        n: int = 1,
        *,
        cond: Any = None,
        sampler: str | Sequence[str] | None = None,
        steps: int | Sequence[int] | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        eta: float | Sequence[float] | None = None,
        seed: int | Sequence[int] | None = None,
        table: StepTable | Sequence[StepTable] | None = None,
        noise: npt.ArrayLike | None = None,
        progress: bool = False,
        callback: Callback | None = None,
        **options: Any,
    ) -> Images:
        """Draws ``n`` samples. Every argument up to ``table`` is one value for all, or a sequence of one each.

        Args:
            n: Number of samples.
            cond: What the network is told: a class name or index, an array, or None for nothing, where it has one
                conditioning input; a dict of these by name otherwise.
            sampler: A name of ``stepfuse.samplers.SAMPLERS``; None is the model's default.
            steps: Number of steps S; None is the model's default, and T for ``ddpm``.
            guidance_scale: Classifier-free guidance, at least 0; None is the model's default. Samples that are told
                nothing cost one pass a step whatever it is.
            eta: DDIM's share of added noise, 0 to 1.
            seed: 0 to 2^64 - 1. With one seed s for all, sample i has seed s + i; None draws one.
            table: A compiled sampler, instead of the four arguments above.
            noise: Starting noise, shape (n, *shape), standard normal; None draws it from the seed.
            progress: Whether a bar is shown.
            callback: Called after each step with steps done, steps in all and the clean samples implied so far, shape
                (n, *shape), zero where one has not begun. If it returns False or raises StopIteration, the run stops
                and that preview is returned.
            **options: The sampler's own: ``spacing``, ``clip``, ``variance``, ``karras``, ...

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
            self.info,
            n,
            cond=cond,
            seed=seed,
            table=table,
            sampler=sampler,
            steps=steps,
            guidance_scale=guidance_scale,
            eta=eta,
            options=options,
        )
        x = starting_state((len(requests), *self.info.shape), noise)
        has_noise = [noise is not None] * len(requests)
        return self._runner.run(requests, x, has_noise, progress=progress, callback=callback)

    def submit(self, request: Request) -> Future[Images]:
        """Draws one image in the background. Requests that wait while others are drawn make up the next batch.

        Returns:
            Holds the image, shape ``info.shape``, or the exception that drawing it alone would raise. Cancelling works
            until its batch begins.

        Raises:
            ValueError: If a bound is broken; the message carries the value received.
            TypeError: If an argument is of the wrong kind.
            RuntimeError: If the engine is closed.
        """
        resolved = resolve(
            self.info,
            1,
            cond=request.cond,
            seed=request.seed,
            table=request.table,
            sampler=request.sampler,
            steps=request.steps,
            guidance_scale=request.guidance_scale,
            eta=request.eta,
            options=request.options,
        )
        noise = None if request.noise is None else starting_state(self.info.shape, request.noise)
        job = Job(resolved[0], noise)
        self._batcher.submit(job)
        return job.future

    async def asample(self, **arguments: Any) -> Images:
        """One image, awaited: ``submit`` of a ``Request`` with these arguments.

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
            **options: More of ``samplers.ddim_inverse``: ``spacing``, ``timesteps``, ...

        Returns:
            Noise of shape (n, *shape), float32.

        Raises:
            ValueError: If a bound is broken; the message carries the value received.
            TypeError: If an argument is of the wrong kind.
            DenoiserError: As in ``sample``.
        """
        require_guidable(self.info, guidance_scale)
        given = np.asarray(images)
        if given.shape[1:] != self.info.shape or not len(given):
            raise ValueError(f"images must have shape (n, {', '.join(map(str, self.info.shape))}), got {given.shape}")
        if steps is None and options.get("timesteps") is None:
            steps = default_steps(self.info, "ddim")
        table = samplers.ddim_inverse(
            self.info.schedule,
            steps,
            prediction_type=cast("PredictionType", self.info.prediction_type),
            refinements=refinements,
            guidance_scale=guidance_scale,
            **options,
        )
        start = starting_state(given.shape, given, "images")
        return self.sample(len(given), cond=cond, table=table, noise=start, seed=0, progress=progress)

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
        return compile_table(self.info, sampler, steps, guidance_scale, eta, options)

    def warmup(self, rows: Sequence[int] = (1, 2)) -> None:
        """Runs a forward of each of these row counts, so that the first sample does not pay for what is made once.

        Raises:
            ValueError: If a count is below 1 or above ``max_rows``.
            RuntimeError: If the engine is closed.
        """
        self._runner.warmup(rows)

    def stats(self) -> dict[str, float]:
        """Counts since the engine was made.

        Returns:
            ``samples`` finished, ``failures``, fused ``steps``, ``forwards`` of the network, ``network_passes``, the
            rows that these computed; ``network_seconds``, ``step_seconds`` and ``loop_seconds`` add up to the time.
        """
        return self._runner.counters()

    def close(self) -> None:
        """Draws what was submitted, then frees the network. Waits for a run in progress; closing twice is fine.

        Raises:
            RuntimeError: If called from inside a run, or from a future's own callback.
        """
        self._runner.wait_until_idle()  # refuses a call from inside a run, which the batcher would wait for in vain
        self._batcher.close()
        self._runner.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._runner.closed else f"up to {self._runner.max_rows} rows"
        return f"<Engine {self.info.shape} {self.info.prediction_type}, {state}>"
