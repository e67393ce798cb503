"""``stepfuse.fit``: a table of few steps, fitted to a network so that it ends where many steps end."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stepfuse.arguments import whole_number
from stepfuse.engine import Engine
from stepfuse.fitting.checkpoint import Checkpoint
from stepfuse.fitting.problem import Problem, fine_table, rms
from stepfuse.fitting.search import Round, search
from stepfuse.fitting.starts import starts
from stepfuse.fitting.student import Student
from stepfuse.samplers.table import StepTable

_FEWEST = 20  # residuals a fitted number
_RANKED_ON, _TRIED_ON, _TRIED_ROUNDS = 16, 32, 2  # noises that say where to begin, and of the first rounds
_REFERENCE_STEPS = 100
_SILENCE = 10  # seconds between lines
_ALIKE = 1e-4  # of two predictions of the same states, relative


def fit(
    engine: Engine,
    steps: int = 8,
    *,
    guidance_scale: float | None = None,
    cond: Any = None,
    negative_cond: Any = None,
    samples: int = 128,
    held_out: int = 64,
    rounds: int = 10,
    registers: int = 3,
    reference: StepTable | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Callable[[str], object] | None = None,
) -> StepTable:
    """Fits a table to an engine's network, without data: few steps that end where a fine solution ends.

    All numbers of all steps are fitted at once, by least squares on the results of the table's own runs: timesteps,
    and weights of the state, of the predictions of this step and the last three, and under guidance of the
    unconditional one. What was fitted best on noises held out is kept. The objective is that of S4S (Frankel et al.,
    2025); the method, Levenberg's and Marquardt's, calls the network and needs no gradient of it.

    Args:
        engine: Its network has to be deterministic.
        steps: Steps of the table, a forward each.
        guidance_scale: Of the fine solution, and of the table; None is the model's default.
        cond: Conditioning as in ``Engine.sample``: one value, or one for each of ``samples + held_out``; None cycles
            through the model's classes, where it names any. ``TextToImage.conditioning`` makes it of prompts.
        negative_cond: Conditioning of guidance's unconditional prediction, as ``cond``; None is the null value.
        samples: Noises that it is fitted to.
        held_out: Noises that decide which round is kept.
        rounds: Most rounds on all noises, and before these on a quarter of them.
        registers: Earlier predictions that a step may read, 0 to 3. With one and no guidance the table has one line.
        reference: The fine solution's table; None is ``unipc`` with 100 steps.
        seed: Of the noises: those of ``Engine.sample`` for ``seed``, ``seed + 1``, ...
        checkpoint: A file that the best round so far is kept in. A fit with the same arguments goes on from it.
        progress: Called with a line of text after each round that is the best so far, and every ten seconds. Where it
            is given, a bar is shown of the fine solution.

    Returns:
        A table of ``steps`` rows, named ``fitted-8`` for 8. Its options have what it was fitted with, and ``error``,
        the RMS to the fine solution on the noises held out.

    Raises:
        ValueError: If a number is out of bounds, ``negative_cond`` is given without guidance, the noises are too few
            for the numbers that are fitted, the network predicts the same states differently from one call to the next,
            ``checkpoint`` is of a fit with other arguments, or the model has no training timesteps or embedded
            guidance.
        TypeError: If an argument is of the wrong kind.

    Examples:
        >>> from stepfuse.analysis import GaussianMixture
        >>> engine = GaussianMixture([[1.0, 0.0], [-1.0, 0.0]], 0.1).engine(sf.NoiseSchedule.linear())  # or any model's
        >>> reference = engine.table(sampler="unipc", steps=20)
        >>> table = sf.fit(engine, steps=3, samples=128, held_out=16, rounds=1, reference=reference)
        >>> len(table), table.passes
        (3, 3)
        >>> table.save("three.npz")
    """
    info = engine.info
    if info.schedule.is_edm:
        raise ValueError(f"model must have training timesteps, which a fit moves, got one with {info.schedule}")
    if info.guidance == "embedded":
        raise ValueError(
            "guidance must be classifier_free or none for a fit, which blends predictions itself, got a model whose"
            " guidance is embedded"
        )
    steps, registers = whole_number("steps", steps), whole_number("registers", registers)
    if not 1 <= steps <= info.schedule.num_train_timesteps:
        raise ValueError(f"steps must be between 1 and {info.schedule.num_train_timesteps}, got {steps}")
    if not 0 <= registers <= 3:
        raise ValueError(f"registers must be between 0 and 3, got {registers}")
    for name, least, value in (("samples", 1, samples), ("held_out", 1, held_out), ("rounds", 1, rounds)):
        if whole_number(name, value) < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    scale = float(info.defaults.get("guidance_scale", 1.0) if guidance_scale is None else guidance_scale)
    if scale == 1 and negative_cond is not None:
        raise ValueError("negative_cond must be left out at guidance_scale 1, which makes no unconditional prediction")
    reference = fine_table(engine, scale, _REFERENCE_STEPS) if reference is None else reference
    blank = Student.blank(info, steps, scale, registers)
    numbers, elements = int(blank.free.sum()), int(np.prod(info.shape))
    if samples * elements < _FEWEST * numbers:
        raise ValueError(
            f"samples must be at least {-(-_FEWEST * numbers // elements)} to fit {numbers} numbers to samples of"
            f" {elements} elements, got {samples}"
        )
    say = _Speaker(progress or (lambda text: None))
    say(f"{samples + held_out} samples in {len(reference)} steps of {reference.sampler}")
    shown = progress is not None
    whole = Problem.of(
        engine, samples + held_out, cond, reference, seed, negative_cond=negative_cond, progress=shown, tick=say.tick
    )
    _require_deterministic(whole, blank)
    fitted, others = whole.part(0, samples), whole.part(samples, samples + held_out)
    options = {
        "steps": steps,
        "guidance_scale": scale,
        "registers": registers,
        "samples": samples,
        "held_out": held_out,
        "seed": seed,
        "reference": f"{reference.sampler}, {len(reference)} steps",
    }
    same = {**options, "problem": _digest(whole, reference)}
    kept = None if checkpoint is None else Checkpoint(Path(checkpoint), same)
    begin = None if kept is None else kept.read(blank)
    if begin is None:
        few, fewer = (whole.part(0, min(samples, number)) for number in (_TRIED_ON, _RANKED_ON))
        tried = (search(one, few, others, rounds=_TRIED_ROUNDS) for one in starts(fewer, blank))
        begin = min(tried, key=lambda one: one.held_out)

    def report(one: Round) -> None:
        say(f"RMS to the fine solution {one.error:.4f}, on noises held out {one.held_out:.4f}")
        if kept is not None:
            kept.write(one)

    quarter = whole.part(0, max(samples // 4, min(samples, _TRIED_ON)))
    for part in (quarter, fitted):  # most of the way is as good with few, and cheaper
        begin = search(begin, part, others, rounds=rounds, after=report)
    return table_of(begin.student, {**options, "error": float(f"{begin.held_out:.4g}")})


class _Speaker:
    """Says lines, and where there is none to say for ten seconds, how far the fit is."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say, self._passes, self._last = say, 0, time.monotonic()

    def __call__(self, text: str) -> None:
        """Says a line."""
        self._say(text)
        self._last = time.monotonic()

    def tick(self, passes: int) -> None:
        """Counts network passes."""
        self._passes += passes
        if time.monotonic() - self._last > _SILENCE:
            self(f"{self._passes:,} network passes so far")


def table_of(student: Student, options: Mapping[str, Any]) -> StepTable:
    """A student as a table for its model."""
    return StepTable.from_columns(
        student.columns(),
        sampler=f"fitted-{len(student)}",
        options=options,
        max_timestep=student.info.schedule.max_timestep,
    )


def _digest(problem: Problem, reference: StepTable) -> str:
    """Of what a fit depends on beside its numbers: network, where it has a digest, conditioning, fine solution."""
    model = problem.engine.model
    found = hashlib.sha256(f"{model and dict(model.files)} {problem.engine.info.shape} {reference.digest}".encode())
    for row in (*problem.cond, *problem.negative_cond):
        found.update(b"null" if row is None else b"".join(value.tobytes() for value in row))
    return found.hexdigest()


def _require_deterministic(problem: Problem, student: Student) -> None:
    once, again = (problem.part(0, 2).predict(student, 0, problem.noise[:2])[0] for _ in range(2))
    if (apart := rms(once - again)) > _ALIKE * max(rms(once), 1e-30):
        raise ValueError(
            f"the network must predict the same of the same states to be fitted to, got predictions that are"
            f" {apart:.2g} apart: switch off dropout, and whatever else is random in it"
        )
