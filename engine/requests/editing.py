"""Image to image and inpainting: where a run begins, and what of its sample stays as it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse import _core
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.samplers import SAMPLERS
from stepfuse.samplers.schedule import NoiseSchedule
from stepfuse.samplers.table import COLUMNS, StepTable

IMAGE_STRENGTH, _MASK_STRENGTH = 0.8, 1.0

# Share of the data range's width by which values may lie beyond it: samplers overshoot, and samples are encoded too.
_OVERSHOOT = 0.4


def strength_or_default(strength: float | None, *, masked: bool) -> float:
    """What a run with an image takes for its strength where the caller gives none: diffusers' defaults."""
    if strength is not None:
        return strength
    return _MASK_STRENGTH if masked else IMAGE_STRENGTH


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
    estimate = (table["u_d"] == 1) & (table["u_x"] == 0) & (table["u_e"] == 0) & (table["u_h"] == 0)
    needs_state = ((table["q_h"] != 0) | (table["u_h"] != 0)) & ~np.roll(estimate, 1)
    needs_state[0] = False
    if table.has_second_line or ("begin" in table.options and needs_state.any()):
        return _begin_again(table, strength, schedule)
    starts = np.flatnonzero(~needs_state)  # the second row of Heun's step is no start: the history holds a state
    kept = _steps_kept(len(starts), strength)
    rest = table[int(starts[-kept]) :]
    rows = np.array(rest.rows)
    q_d, q_h = COLUMNS.index("q_d"), COLUMNS.index("q_h")
    rows[0, q_d] += rows[0, q_h]
    rows[0, q_h] = 0
    return replace(rest, rows=rows)


def _begin_again(table: StepTable, strength: float, schedule: NoiseSchedule) -> StepTable:
    """The table of the last steps, by the sampler that made the whole one."""
    make = SAMPLERS.get(table.sampler)
    try:
        options = dict(table.options)
        if (table["g"] == 1).all():  # embedded guidance leaves the scale in the options alone
            options["guidance_scale"] = 1.0
        whole = None if make is None else make(schedule, **options).with_zero_init(table.zero_init)
    except (TypeError, ValueError):  # options of another version, or by hand
        whole = None
    if make is None or whole is None or "begin" not in whole.options or not np.array_equal(whole.rows, table.rows):
        raise ValueError(
            "strength must be 1 with a table that has a second line and that no sampler makes for this model: its rows"
            f" cannot begin in the middle; got {strength} with {table!r}"
        )
    begin, steps = whole.options["begin"], whole.options["steps"]
    timesteps = whole.options.get("timesteps")  # EDM's samplers have levels alone
    if steps is None:
        given = whole.options["sigmas"] if timesteps is None else timesteps
        steps = len(given) - (timesteps is None and given[-1] == 0)  # sigmas may end with that of the clean sample
    steps -= begin
    rest = make(schedule, **{**whole.options, "begin": begin + steps - _steps_kept(steps, strength)})
    rest = rest.with_zero_init(max(table.zero_init - (len(table) - len(rest)), 0))
    options = {**rest.options, "guidance_scale": table.options.get("guidance_scale", 1.0)}
    return replace(table, rows=rest.rows, options=options, levels=rest.levels, zero_init=rest.zero_init)


def _steps_kept(steps: int, strength: float) -> int:
    kept = int(steps * strength)
    if kept == 0:
        raise ValueError(f"strength must leave at least one of {steps} steps, at least {1 / steps:.3g}, got {strength}")
    return kept


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


def levels(table: StepTable, schedule: NoiseSchedule) -> npt.NDArray[np.float32]:
    """Signal and noise of the state before each row, and of the clean result behind the last, shape (S + 1, 2).

    They are the table's own, which a sampler may take from between the schedule's; a table made by hand has none, and
    takes those of the schedule at its timesteps.
    """
    if table.levels is not None:
        return table.levels.astype(np.float32)
    scale = table["s"].astype(np.float64)
    mixed = np.stack(schedule.levels(table["t"].astype(np.float64)), axis=1) / scale[:, None]
    return np.append(mixed, [[1.0, 0.0]], axis=0).astype(np.float32)


class Edit:
    """What the samples of one call begin with and keep: ``image``, ``mask`` and ``strength`` of ``Engine.sample``.

    Args:
        info: The model.
        n: Number of samples.
        image: One for all, or one a sample; None: the samples begin as noise.
        mask: The same; None: nothing is kept.
        strength: One a sample.

    Raises:
        ValueError: If ``mask`` or ``strength`` comes without ``image``, a shape is not the model's, an image is not
            finite or lies outside of the data range, or a mask outside of 0 to 1.
        TypeError: If an array does not hold numbers.
    """

    def __init__(
        self, info: ModelInfo, n: int, image: npt.ArrayLike | None, mask: npt.ArrayLike | None, strength: Sequence[Any]
    ) -> None:
        self._schedule = info.schedule
        self._strength = strength
        # Samples share tables: what is left of each, by its id and strength, and itself, so that its id stays its own.
        self._late: dict[tuple[int, float], tuple[StepTable, StepTable]] = {}
        self._images = self._masks = None
        if image is None:
            for name, given in (("mask", mask), ("strength", next((one for one in strength if one is not None), None))):
                if given is not None:
                    raise ValueError(f"{name} needs an image, got image=None")
            return
        self._images = np.broadcast_to(as_images(info, image, "image", n), (n, *info.shape))
        if mask is not None:
            self._masks = np.broadcast_to(_as_masks(info.shape, mask, n), (n, *info.shape))

    def apply(self, index: int, table: StepTable) -> tuple[StepTable, _core.KnownRegion | None]:
        """The run of one sample, and what is known of it."""
        if self._images is None:
            return table, None
        mask = None if self._masks is None else self._masks[index]
        strength = strength_or_default(self._strength[index], masked=mask is not None)
        key = id(table), strength
        if key not in self._late:
            self._late[key] = table, begin_late(table, strength, self._schedule)
        run = self._late[key][1]
        mixed = levels(run, self._schedule)
        if mask is not None and strength == 1:
            mixed[0] = 0.0, table.init_scale  # nothing of what is drawn anew is seen
        image = np.ascontiguousarray(self._images[index]).reshape(-1)
        return run, _core.KnownRegion(image, None if mask is None else np.ascontiguousarray(mask).reshape(-1), mixed)


def as_images(info: ModelInfo, given: npt.ArrayLike, name: str, n: int | None = None) -> npt.NDArray[np.float32]:
    """Images of the model's shape and data range, float32.

    Args:
        info: The model.
        given: Shape (n, *shape), or one image of the model's shape where ``n`` is given.
        name: What messages call them.
        n: How many there must be; None: at least one.

    Returns:
        Shape (n, *shape), or (*shape,) if that was given.

    Raises:
        ValueError: If the shape is another, a number is not finite, or one lies outside the data range, where that is
            known, by more than two fifths of its width, as in an image of other units.
        TypeError: If they are not floating point.
    """
    array = np.asarray(given)
    single = n is not None and array.shape == info.shape
    if not single and (array.shape[1:] != info.shape or len(array) != (n or max(len(array), 1))):
        text = ", ".join(map(str, info.shape))
        rule = f"(n, {text})" if n is None else f"({text}) or ({n}, {text})"
        raise ValueError(f"{name} must have shape {rule}, got {array.shape}")
    if array.dtype.kind != "f":
        raise TypeError(f"{name} must be floating point, got {array.dtype}")
    low, high = info.data_range
    slack = _OVERSHOOT * (high - low) if info.range_known else np.inf
    inside = np.isfinite(array) & (array >= low - slack) & (array <= high + slack)
    if not inside.all():
        where = tuple(int(i) for i in np.argwhere(~inside)[0])
        rule = f"in the model's data range, {low:g} to {high:g}" if np.isfinite(array[where]) else "finite"
        raise ValueError(f"{name} must be {rule}, got {array[where]:g} at {where}")
    return array.astype(np.float32)


def _as_masks(shape: tuple[int, ...], given: npt.ArrayLike, n: int) -> npt.NDArray[np.float32]:
    """Masks, float32, of a shape that broadcasts to (n, *shape)."""
    array = np.asarray(given)
    planes = {shape, (1, *shape[1:])} | ({shape[1:]} if len(shape) > 2 else set())
    allowed = planes | {(n, *plane) for plane in planes if len(plane) == len(shape)}
    if array.shape not in allowed:
        rule = " or ".join(map(str, sorted(allowed, key=lambda one: (len(one), one))))
        raise ValueError(f"mask must have shape {rule}, got {array.shape}")
    if array.dtype.kind not in "fbiu":
        raise TypeError(f"mask must hold numbers or truth values, got {array.dtype}")
    inside = (array >= 0) & (array <= 1)
    if not inside.all():
        where = tuple(int(i) for i in np.argwhere(~inside)[0])
        raise ValueError(f"mask must be between 0 (kept) and 1 (drawn), got {array[where]:g} at {where}")
    return array.astype(np.float32)
