"""Image to image and inpainting: what a run begins as, and what of its sample stays as it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse import _core
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.requests.partial_run import begin_late
from stepfuse.samplers.schedule import NoiseSchedule
from stepfuse.samplers.table import StepTable

IMAGE_STRENGTH, _MASK_STRENGTH = 0.8, 1.0

# Share of the data range's width by which values may lie beyond it: samplers overshoot, and samples are encoded too.
_OVERSHOOT = 0.4


def strength_or_default(strength: float | None, *, masked: bool) -> float:
    """What a run with an image takes for its strength where the caller gives none: diffusers' defaults."""
    if strength is not None:
        return strength
    return _MASK_STRENGTH if masked else IMAGE_STRENGTH


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
