"""The paths of samplers from noise to data in two dimensions, with the exact noise prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.analysis.experiments.mixture import GaussianMixture
from stepfuse.analysis.experiments.sampling import Choice, SamplerChoice, choose, counted, require_count
from stepfuse.analysis.measures.wasserstein import sliced_wasserstein
from stepfuse.bundle.cond_input import CondInput
from stepfuse.engine import Engine
from stepfuse.samplers.noise import normal
from stepfuse.samplers.schedule import NoiseSchedule
from stepfuse.samplers.table import StepTable

Trajectories = npt.NDArray[np.float32]

#: From the most step noise to none.
DEFAULT_SAMPLERS: tuple[SamplerChoice, ...] = (
    ("ddpm", {}),
    ("ddim", {"steps": 50, "eta": 0.5}),
    ("ddim", {"steps": 50, "eta": 0.0}),
)

_EXACT_SAMPLES = 50_000


@dataclass(frozen=True)
class PathsRow:
    """One sampler's paths, averaged over all samples.

    Attributes:
        sampler: Name of the sampler.
        options: Its options as text.
        steps: Its number of steps.
        passes: Network passes a sample, as the engine counted them.
        path_length: Length of all steps together.
        reversals: Number of steps at more than a right angle to the step before.
        runs_apart: Distance between the ends of two runs from the same starting noise with different step noise; 0 if
            the starting noise determines the end.
        distance: Sliced Wasserstein distance of the ends to exact samples; ``Paths.floor`` is that of exact samples.
        spread: Root mean square distance of the ends from the nearest component's mean, per dimension;
            ``Paths.exact_spread`` is that of exact samples.
    """

    sampler: str
    options: str
    steps: int
    passes: int
    path_length: float
    reversals: float
    runs_apart: float
    distance: float
    spread: float


@dataclass(frozen=True, eq=False)
class Paths:
    """Result of ``paths``.

    Attributes:
        rows: One a sampler.
        samples: Number of samples n of each sampler.
        seed: Sample i has seed ``seed + i``, for every sampler.
        floor: Sliced Wasserstein distance of n exact samples to the exact samples that the ends are compared with.
        exact_spread: ``PathsRow.spread`` of exact samples.
        mixture: The data.
        trajectories: The states of each sampler, from noise to sample, shape (n, its steps + 1, 2).

    Examples:
        >>> from stepfuse.analysis import paths
        >>> found = paths(samples=3, samplers=[("ddim", {"steps": 10})])
        >>> found.samples, len(found.trajectories)
        (3, 1)
    """

    rows: tuple[PathsRow, ...]
    samples: int
    seed: int
    floor: float
    exact_spread: float
    mixture: GaussianMixture = field(repr=False)
    trajectories: tuple[Trajectories, ...] = field(repr=False)


def paths(
    *,
    mixture: GaussianMixture | None = None,
    schedule: NoiseSchedule | None = None,
    samples: int = 600,
    samplers: Sequence[SamplerChoice] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Paths:
    """Samples a mixture of Gaussians in two dimensions, and records the state of every step.

    The network is exact, so the paths depend on the sampler alone. Every sampler has the same starting noise and the
    same seeds.

    Args:
        mixture: The data, in two dimensions; None is ``default_mixture()``.
        schedule: Noise levels; None is the linear schedule of Ho et al. (2020).
        samples: Number of samples n, at least 2.
        samplers: Names, with more arguments of ``Engine.sample``. By default those of
            ``DEFAULT_SAMPLERS``: full DDPM, and DDIM of 50 steps with eta 0.5 and with eta 0.
        seed: Seed of the first sample; sample i has ``seed + i``.
        progress: Whether progress bars are shown.

    Raises:
        ValueError: If ``samples`` is below 2, ``mixture`` has not 2 dimensions, ``samplers`` is empty, a sampler
            refuses one of its options, or ``seed`` is negative.
        TypeError: If ``samples`` is not an integer, or a sampler has no option of a given name.

    Examples:
        >>> from stepfuse.analysis import paths
        >>> found = paths(samples=3, samplers=[("ddim", {"steps": 10})])
        >>> found.rows[0].sampler
        'ddim'
    """
    require_count("samples", samples, 2)
    mixture = default_mixture() if mixture is None else mixture
    if mixture.dimensions != 2:
        raise ValueError(f"mixture must have 2 dimensions, got {mixture.dimensions}")
    schedule = NoiseSchedule.linear() if schedule is None else schedule
    recorder = _Recorder(mixture, schedule, samples)
    exact = mixture.draw(_EXACT_SAMPLES, seed)
    rows, trajectories = [], []
    with recorder.engine as engine:
        for choice in choose(engine, DEFAULT_SAMPLERS if samplers is None else samplers):
            with counted(engine) as passes:
                states = recorder.run(choice.table, seed, seed, progress)
            again = recorder.run(choice.table, seed, seed + samples, progress)
            rows.append(_row(choice, passes.count // samples, states, again, mixture, exact))
            trajectories.append(states)
    fresh = mixture.draw(samples, seed + 1)
    floor, spread = sliced_wasserstein(fresh, exact), _spread(exact, mixture)
    return Paths(tuple(rows), samples, seed, floor, spread, mixture, tuple(trajectories))


def default_mixture() -> GaussianMixture:
    """Five isotropic components of equal weight on a circle."""
    angle = np.pi / 2 + 2 * np.pi * np.arange(5) / 5
    return GaussianMixture(3.0 * np.stack([np.cos(angle), np.sin(angle)], axis=1), 0.3)


class _Recorder:
    """An engine whose network records the states that it is given.

    The conditioning of a row is the number of its sample, so the record does not depend on how the engine orders rows.
    """

    def __init__(self, mixture: GaussianMixture, schedule: NoiseSchedule, samples: int) -> None:
        self._predict = mixture.denoiser(schedule)
        self._recorded: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]] = []
        self._samples = samples
        self.engine = Engine.from_callable(
            self._forward,
            shape=(mixture.dimensions,),
            schedule=schedule,
            prediction_type="flow" if schedule.is_flow else "epsilon",
            cond={"sample": CondInput(null=-1)},
            max_rows=samples,
        )

    def _forward(self, x: Any, t: Any, cond: Any) -> Any:
        self._recorded.append((cond["sample"], x))
        return self._predict(x, t, cond)

    def run(self, table: StepTable, start_seed: int, step_seed: int, progress: bool) -> Trajectories:
        """The states of every sample, shape (n, S + 1, D): the one before each step, and the last."""
        noise = np.stack([normal((start_seed + i) % (1 << 64), self.engine.info.shape) for i in range(self._samples)])
        self._recorded.clear()
        seeds = [(step_seed + i) % (1 << 64) for i in range(self._samples)]
        ends = self.engine.sample(
            self._samples,
            table=table,
            noise=noise,
            seed=seeds,
            cond=list(range(self._samples)),
            progress=progress,
        )
        numbers = np.concatenate([samples for samples, _ in self._recorded])
        inputs = np.concatenate([x for _, x in self._recorded])[np.argsort(numbers, kind="stable")]
        states = inputs.reshape(self._samples, len(table), -1) / table["s"][:, None]
        return np.concatenate([states, ends[:, None]], axis=1)


def _row(
    choice: Choice,
    passes: int,
    states: Trajectories,
    again: Trajectories,
    mixture: GaussianMixture,
    exact: npt.NDArray[np.float64],
) -> PathsRow:
    moves = np.diff(states.astype(np.float64), axis=1)
    along = (moves[:, 1:] * moves[:, :-1]).sum(2)  # negative where a step goes back against the one before
    return PathsRow(
        sampler=choice.sampler,
        options=choice.options,
        steps=choice.steps,
        passes=passes,
        path_length=float(np.linalg.norm(moves, axis=2).sum(1).mean()),
        reversals=float((along < 0).sum(1).mean()),
        runs_apart=float(np.linalg.norm(states[:, -1].astype(np.float64) - again[:, -1], axis=1).mean()),
        distance=sliced_wasserstein(states[:, -1], exact),
        spread=_spread(states[:, -1], mixture),
    )


def _spread(points: npt.ArrayLike, mixture: GaussianMixture) -> float:
    offsets = np.asarray(points, dtype=np.float64)[:, None] - mixture.means
    return float(np.sqrt((offsets**2).sum(2).min(1).mean() / mixture.dimensions))
