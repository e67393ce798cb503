"""The engine: a network and a loop, and what a user calls."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from stepfuse import _core, samplers
from stepfuse.backends.buffers import Buffers
from stepfuse.backends.function import DenoiserFunction, FunctionDenoiser
from stepfuse.bundle import Bundle, ModelInfo
from stepfuse.coefficients import PredictionType
from stepfuse.cond import CondInput
from stepfuse.errors import DenoiserError
from stepfuse.interpolation import Path, interpolate_noise
from stepfuse.progress import ProgressBar, turns_needed
from stepfuse.request import SampleRequest, compile_table, default_steps, resolve, starting_state
from stepfuse.schedule import NoiseSchedule
from stepfuse.steptable import COLUMNS, StepTable

Images = npt.NDArray[np.float32]

#: ``callback(step, total, x0_preview)``: False stops the run, anything else goes on.
Callback = Callable[[int, int, Images], bool | None]

DEFAULT_MAX_ROWS = 64


class _Denoiser(Protocol):
    def forward(self, rows: int) -> None: ...
    def close(self) -> None: ...


class Engine:
    """Draws samples from one network. Made by ``load`` or ``from_callable``; a context manager, or to be closed.

    Calls from several threads are safe; they run one after the other.
    """

    def __init__(self, info: ModelInfo, make_denoiser: Callable[[Buffers], _Denoiser], *, max_rows: int) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {max_rows}")
        self.info = info
        cond_bytes = [_row_bytes(spec) for spec in info.cond.values()]
        elements = math.prod(info.shape)
        self._loop = _core.Loop(elements, info.timestep_dtype == "int64", cond_bytes, max_rows)
        self._max_rows = max_rows
        self._denoiser: _Denoiser | None = make_denoiser(Buffers.of(self._loop, info))
        self._nulls = [spec.value(name, None) for name, spec in info.cond.items()]
        self._lock = threading.RLock()  # so that a call from inside a run is refused instead of waiting for itself
        self._running = False

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

        def make(buffers: Buffers) -> _Denoiser:
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
        preview = np.zeros_like(x) if callback is not None else None
        with self._lock, self._progress_bar(requests, progress) as bar:
            completed = self._run(requests, x, noise is not None, preview, bar, callback)
        return x if completed or preview is None else preview

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
        with self._lock:
            denoiser = self._open()
            for count in rows:
                if not 1 <= count <= self._max_rows:
                    raise ValueError(f"rows must be between 1 and {self._max_rows}, got {count}")
            self._running = True
            try:
                for count in rows:
                    denoiser.forward(count)
            finally:
                self._running = False

    def stats(self) -> dict[str, float]:
        """Counts since the engine was made.

        Returns:
            ``samples`` finished, ``failures``, fused ``steps``, ``forwards`` of the network, ``network_passes``, the
            rows that these computed; ``network_seconds``, ``step_seconds`` and ``loop_seconds`` add up to the time.
        """
        return self._loop.counters()

    def close(self) -> None:
        """Frees the network. Waits for a run in progress; closing twice is fine."""
        with self._lock:
            self._require_idle()
            if self._denoiser is not None:
                self._denoiser.close()
            self._denoiser = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._denoiser is None else f"up to {self._max_rows} rows"
        return f"<Engine {self.info.shape} {self.info.prediction_type}, {state}>"

    def _open(self) -> _Denoiser:
        if self._denoiser is None:
            raise RuntimeError("the engine is closed")
        self._require_idle()
        return self._denoiser

    def _require_idle(self) -> None:
        if self._running:
            raise RuntimeError("the engine is running: it cannot be used or closed from its own denoiser or callback")

    def _run(
        self,
        requests: Sequence[SampleRequest],
        x: Images,
        has_noise: bool,
        preview: Images | None,
        bar: ProgressBar | None,
        callback: Callback | None,
    ) -> bool:
        """Runs the loop over ``x`` in place. False if the callback stopped it."""
        denoiser = self._open()
        turn, turns = 0, turns_needed(requests, self._max_rows) if callback is not None else 0
        stopped = False

        def on_turn() -> bool:
            nonlocal turn, stopped
            turn += 1
            if bar is not None:
                bar.update(turn)
            if callback is not None and preview is not None:
                try:
                    answer = callback(turn, turns, preview.copy())
                    stopped = answer is not None and not answer
                except StopIteration:
                    stopped = True
            return not stopped

        self._running = True
        try:
            self._submit(requests, x, has_noise, preview)
            watched = bar is not None or callback is not None
            failures = self._loop.run(denoiser.forward, on_turn if watched else None)
        finally:
            self._loop.abort()
            self._running = False
        if failures:
            raise _non_finite(requests, *failures[0])
        return not stopped

    def _submit(self, requests: Sequence[SampleRequest], x: Images, has_noise: bool, preview: Images | None) -> None:
        compiled = {id(request.table): request.table for request in requests}
        shared_tables = {key: _core.Table(table.rows, table.init_scale) for key, table in compiled.items()}
        for index, request in enumerate(requests):
            shared = shared_tables[id(request.table)]
            seen = None if preview is None else preview[index]
            self._loop.submit(index, shared, request.seed, has_noise, x[index], seen, request.cond or [], self._nulls)

    def _progress_bar(
        self, requests: Sequence[SampleRequest], wanted: bool
    ) -> AbstractContextManager[ProgressBar | None]:
        if not wanted:
            return nullcontext()
        return ProgressBar(turns_needed(requests, self._max_rows))


def _row_bytes(spec: CondInput) -> int:
    return int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize


def _non_finite(
    requests: Sequence[SampleRequest], index: int, step: int, row: npt.NDArray[np.float32]
) -> DenoiserError:
    table = requests[index].table
    values = ", ".join(f"{name} = {value:g}" for name, value in zip(COLUMNS, row, strict=True))
    return DenoiserError(
        f"sample {index} went non-finite at step {step} of {len(table)} ({table.sampler}): the network's output must be"
        f" finite. The step was {values}"
    )
