"""Parts of a run: its last steps, by their share or from a noise level on, and its first, down to a noise level."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from stepfuse.arguments import number
from stepfuse.samplers import SAMPLERS
from stepfuse.samplers.schedule import NoiseSchedule
from stepfuse.samplers.table import COLUMNS, StepTable


def begin_late(table: StepTable, strength: float, schedule: NoiseSchedule) -> StepTable:
    """The last part of a run, for a sample that begins as a noised image (SDEdit: Meng et al., 2022).

    Args:
        table: The whole run.
        strength: Share of its steps that is left, above 0 and at most 1; the whole part of ``strength`` times steps is
            taken, as in diffusers.
        schedule: The model's noise levels.

    Returns:
        The last rows. A row that would need the estimate of the step before it takes its own in its place: the first
        step of a multistep solver is of first order. A sampler with more memory makes its table again, with ``begin``.

    Raises:
        ValueError: If the strength is out of bounds or leaves no step, or the table has a second line and no sampler
            makes it for this schedule.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength}")
    if strength == 1:
        return table
    steps = _Steps(table, schedule, "strength must be 1", strength)
    count = len(steps.starts)
    kept = int(count * strength)
    if kept == 0:
        raise ValueError(f"strength must leave at least one of {count} steps, at least {1 / count:.3g}, got {strength}")
    return steps.begin_at(count - kept)


def strength_of_flow(strength: float, steps: int) -> float:
    """The strength whose steps are those of diffusers' pipelines of flow models, which round down what is left out.

    Args:
        strength: As their callers give it; one out of bounds is returned as it is, to be refused.
        steps: Of the whole run.
    """
    if not 0 < strength < 1:
        return strength
    taken = steps - int(steps - steps * strength)
    return min((taken + 0.5) / steps, 1.0)  # a half is not lost to rounding where the whole part is taken


def part_of_run(
    table: StepTable,
    schedule: NoiseSchedule,
    *,
    denoising_start: float | None = None,
    denoising_end: float | None = None,
) -> StepTable:
    """A run that leaves the rest of the noise to another model, or goes on from there, as diffusers' XL pipelines do.

    Both are shares of the training timesteps T, from the noisiest on, and not of the steps: a run ends before the first
    timestep below ``(1 - denoising_end) * T``, rounded, and one goes on at the first below
    ``(1 - denoising_start) * T``. Where that parts the two rows of a step, as of ``heun``, diffusers ends between them
    and goes on with both, and so does this.

    Args:
        table: The whole run.
        schedule: The model's noise levels.
        denoising_start: Where the run begins, above 0 and below 1; None: at its first step. The first step that is
            taken is as in ``begin_late``.
        denoising_end: Where it ends, above ``denoising_start`` and below 1; None: with its last step.

    Returns:
        The steps between, at least one. With ``denoising_start`` the first state is what is given, and not scaled
        (``init_scale`` is 1).

    Raises:
        TypeError: If one is no number.
        ValueError: If one is out of bounds or leaves no step, the schedule is EDM's, whose timesteps are no shares of
            T, or ``begin_late`` would refuse the table.
    """
    given = {"denoising_start": denoising_start, "denoising_end": denoising_end}
    cutoffs = {name: _cutoff(name, share, schedule) for name, share in given.items() if share is not None}
    if denoising_start is not None and denoising_end is not None and denoising_start >= denoising_end:
        raise ValueError(f"denoising_start must be below denoising_end, got {denoising_start} and {denoising_end}")
    part = table
    if denoising_start is not None:
        below = _some("denoising_start", denoising_start, part, part["t"] < cutoffs["denoising_start"])
        steps = _Steps(table, schedule, "denoising_start must be left out", denoising_start)
        first = int(np.searchsorted(steps.starts, len(table) - below, side="right")) - 1
        part = replace(steps.begin_at(first), init_scale=1.0)
    if denoising_end is not None:
        part = part[: _some("denoising_end", denoising_end, part, part["t"] >= cutoffs["denoising_end"])]
    return part


def _cutoff(name: str, share: float, schedule: NoiseSchedule) -> int:
    if schedule.is_edm:
        raise ValueError(f"{name} must be left out for a model of EDM, whose timesteps are no shares of T, got {share}")
    share = number(name, share)
    if not 0 < share < 1:
        raise ValueError(f"{name} must be above 0 and below 1, got {share}")
    total = schedule.num_train_timesteps
    return round(total - share * total)


def _some(name: str, share: float, table: StepTable, kept: npt.NDArray[np.bool_]) -> int:
    """How many rows are kept."""
    if not kept.any():
        raise ValueError(
            f"{name} must leave at least one step, whose timesteps are {table['t'].max():g} to {table['t'].min():g},"
            f" got {share}"
        )
    return int(kept.sum())


class _Steps:
    """The steps of a run, at each of which it may begin.

    Args:
        table: The whole run.
        schedule: The model's noise levels.
        rule: What a message asks for where the rows cannot begin in the middle.
        given: What it says was given instead.

    Attributes:
        starts: The first row of each step: the second one of Heun's reads a state from the history.

    Raises:
        ValueError: If the table has a second line and no sampler makes it for this schedule.
    """

    def __init__(self, table: StepTable, schedule: NoiseSchedule, rule: str, given: float) -> None:
        self._table, self._schedule = table, schedule
        self._whole: StepTable | None = None
        estimate = (table["u_d"] == 1) & (table["u_x"] == 0) & (table["u_e"] == 0) & (table["u_h"] == 0)
        needs_state = ((table["q_h"] != 0) | (table["u_h"] != 0)) & ~np.roll(estimate, 1)
        needs_state[0] = False
        if not (table.has_second_line or ("begin" in table.options and needs_state.any())):
            self.starts = np.flatnonzero(~needs_state)
            return
        self._whole = _made_again(table, schedule)
        if self._whole is None:
            raise ValueError(
                f"{rule} with a table that has a second line and that no sampler makes for this model: its rows cannot"
                f" begin in the middle; got {given} with {table!r}"
            )
        steps = np.arange(_count_steps(self._whole))
        self.starts = steps + np.minimum(steps, len(table) - len(steps))  # the first of them may take two rows each

    def begin_at(self, step: int) -> StepTable:
        """The run from a step on."""
        table, whole = self._table, self._whole
        if whole is None:
            rest = table[int(self.starts[step]) :]
            rows = np.array(rest.rows)
            q_d, q_h = COLUMNS.index("q_d"), COLUMNS.index("q_h")
            rows[0, q_d] += rows[0, q_h]
            rows[0, q_h] = 0
            return replace(rest, rows=rows)
        options = {**whole.options, "begin": whole.options["begin"] + step}
        rest = SAMPLERS[whole.sampler](self._schedule, **options)
        rest = rest.with_zero_init(max(table.zero_init - (len(table) - len(rest)), 0))
        options = {**rest.options, "guidance_scale": table.options.get("guidance_scale", 1.0)}
        return replace(table, rows=rest.rows, options=options, levels=rest.levels, zero_init=rest.zero_init)


def _made_again(table: StepTable, schedule: NoiseSchedule) -> StepTable | None:
    """The same table, by the sampler that made it; None where none makes the same rows with an option to begin late."""
    make = SAMPLERS.get(table.sampler)
    try:
        options = dict(table.options)
        if (table["g"] == 1).all():  # embedded guidance leaves the scale in the options alone
            options["guidance_scale"] = 1.0
        whole = None if make is None else make(schedule, **options).with_zero_init(table.zero_init)
    except (TypeError, ValueError):  # options of another version, or by hand
        return None
    return whole if whole is not None and "begin" in whole.options and np.array_equal(whole.rows, table.rows) else None


def _count_steps(table: StepTable) -> int:
    """Steps of a table that a sampler has made."""
    options = table.options
    steps, timesteps = options["steps"], options.get("timesteps")  # EDM's samplers have levels alone
    if steps is None:
        given = options["sigmas"] if timesteps is None else timesteps
        steps = len(given) - (timesteps is None and given[-1] == 0)  # sigmas may end with that of the clean sample
    return int(steps - options["begin"])
