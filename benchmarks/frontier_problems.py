"""What the samplers of ``frontier.py`` are tried on: noises, and where the exact solution takes them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import stepfuse as sf
from stepfuse.analysis import GaussianMixture, Judge
from stepfuse.analysis.measures.wasserstein import sliced_wasserstein
from stepfuse.fitting.problem import fine_table, rms
from stepfuse.samplers.noise import normal

Array = npt.NDArray[Any]

FIRST_SEED, OTHER_SEED = 10**6, 2 * 10**6  # no table of ``fashion`` was fitted to these noises
MOST_SAMPLES = 512  # in one call of the engine
EXACT_DRAWS = 1 << 13


@dataclass(frozen=True)
class Problem:
    """A network and what its samples are measured by.

    Attributes:
        name: In results and pictures.
        key: Says the network and the noises: results of another key are not of this problem.
        engine: What samples.
        guidance_scale: Of all samplers.
        solve: The exact solution of so many noises, the first of which has a given seed, in as many times fewer steps.
        distance: Of samples, to what the data are.
        samples: Noises of each configuration that is measured in full.
        screened: Noises of a sampler without noise, and of one with it, by which is chosen what is measured in full.
    """

    name: str
    key: str
    engine: sf.Engine
    guidance_scale: float
    solve: Callable[[int, int, int], Array]
    distance: Callable[[Array], float]
    samples: int
    screened: tuple[int, int]

    def sample(self, tables: Sequence[sf.StepTable], count: int) -> Iterator[Array]:
        """Samples of each table from the first ``count`` noises; tables share batches."""
        at_once = max(1, MOST_SAMPLES // count)
        for first in range(0, len(tables), at_once):
            group = tables[first : first + at_once]
            seeds = [FIRST_SEED + i for i in range(count)] * len(group)
            drawn = self.engine.sample(
                len(seeds),
                table=[table for table in group for _ in range(count)],
                seed=seeds,
                cond=classes(self.engine, count) * len(group) or None,
            )
            yield from drawn.reshape(len(group), count, *drawn.shape[1:])

    def exact(self, cache: Path | None) -> tuple[Array, dict[str, Any]]:
        """The exact solution of the first noises, and how far it can be trusted.

        Args:
            cache: A file that keeps it; None keeps it nowhere.

        Returns:
            Shape (samples, *shape), float64, and ``exact_error``, RMS to a solution of half the steps, and
            ``exact_distances``, of two sets of independent noises.
        """
        if cache is None or not cache.exists():
            first = self.solve(self.samples, FIRST_SEED, 1)
            few = min(64, self.samples)
            other = self.solve(self.samples, OTHER_SEED, 1)
            numbers: dict[str, Any] = {
                "exact_error": rms(first[:few] - self.solve(few, FIRST_SEED, 2)),
                "exact_distances": [self.distance(first), self.distance(other)],
            }
            if cache is None:
                return first, numbers
            cache.parent.mkdir(parents=True, exist_ok=True)
            np.savez(cache, exact=first, **numbers)
        kept = np.load(cache)
        return kept["exact"], {name: kept[name].tolist() for name in ("exact_error", "exact_distances")}


def classes(engine: sf.Engine, count: int) -> list[int]:
    """The model's classes in turn; none if it has no conditioning."""
    [names] = [one.names for one in engine.info.cond.values()] or [()]
    return [i % len(names) for i in range(count)] if names else []


def mixture_of(dimensions: int, components: int) -> GaussianMixture:
    """Components of different sizes and weights, always the same.

    They overlap. Where they are far apart the RMS is made by the few noises between two of them, which a small error
    leads to the other one.
    """
    rng = np.random.default_rng(0)
    means = 0.5 * rng.standard_normal((components, dimensions))
    return GaussianMixture(means, np.geomspace(0.3, 0.6, components), rng.uniform(0.5, 1.5, components))


def mixture_problem(samples: int, screened: tuple[int, int], *, steps: int = 400) -> Problem:
    """The mixture with 16 dimensions; its exact solution is integrated in ``steps`` steps."""
    mixture, schedule = mixture_of(16, 8), sf.NoiseSchedule.linear()
    draws = mixture.draw(EXACT_DRAWS, seed=1)

    def solve(count: int, seed: int, coarser: int) -> Array:
        noise = np.stack([normal(seed + i, (mixture.dimensions,)) for i in range(count)])
        return probability_flow(mixture, schedule, noise, steps // coarser)

    numbers = b"".join(one.tobytes() for one in (mixture.means, mixture.spreads, mixture.weights))
    key = f"mixture-{hashlib.sha256(numbers).hexdigest()[:12]}-{samples}-{steps}-{EXACT_DRAWS}"
    engine = mixture.engine(schedule, max_rows=MOST_SAMPLES)
    return Problem("mixture", key, engine, 1.0, solve, lambda x: sliced_wasserstein(x, draws), samples, screened)


def fashion_problem(
    guidance_scale: float, samples: int, screened: tuple[int, int], *, steps: int = 200, threads: int = 0
) -> Problem:
    """The embedded model; its exact solution is a fine one of ``steps`` steps of ``unipc``."""
    bundle = sf.Bundle.load("fashion")
    engine = sf.Engine.load(bundle, threads=threads)

    def solve(count: int, seed: int, coarser: int) -> Array:
        table = fine_table(engine, guidance_scale, steps // coarser)
        found = engine.sample(count, table=table, seed=seed, cond=classes(engine, count))
        return found.astype(np.float64)

    weights = bundle.files["denoiser.onnx"]["sha256"]
    key = f"fashion-{weights[:12]}-{guidance_scale:g}-{samples}-{steps}"
    name = "fashion" if guidance_scale == 1 else f"fashion, guidance {guidance_scale:g}"
    return Problem(name, key, engine, guidance_scale, solve, Judge.load("fashion").distance, samples, screened)


def probability_flow(mixture: GaussianMixture, schedule: sf.NoiseSchedule, noise: Array, steps: int) -> Array:
    """Where the probability-flow ODE takes noise, from the schedule's last timestep to the data, in float64.

    With x the state over its signal and σ its noise over its signal, dx/dσ = E[z | x] (Song et al., 2021, "Denoising
    diffusion implicit models", Eq. 14), here by the Runge-Kutta method of order 4 in u with σ = c sinh(u): even steps
    of σ where it is below the components' spread c, and of its logarithm above.

    Args:
        mixture: The data.
        schedule: Has the first level.
        noise: (n, D), the first states.
        steps: Of four evaluations each.
    """
    signal, level = (float(one) for one in schedule.levels(schedule.num_train_timesteps - 1))
    c = float(mixture.spreads.min())
    length = np.arcsinh(level / signal / c) / steps

    def slope(x: Array, u: float) -> Array:
        return c * np.cosh(u) * mixture.expected(x, 1.0, c * np.sinh(u))[1]

    x = noise.astype(np.float64) / signal
    for step in range(steps, 0, -1):
        u = step * length
        k1 = slope(x, u)
        k2 = slope(x - length / 2 * k1, u - length / 2)
        k3 = slope(x - length / 2 * k2, u - length / 2)
        k4 = slope(x - length * k3, u - length)
        x = x - length / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x
