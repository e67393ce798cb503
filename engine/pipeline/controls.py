"""Pictures that ControlNets follow, with how much and at which steps, as conditioning of the denoiser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.arguments import number
from stepfuse.bundle.pipeline_info import CONTROL_FIRST, CONTROL_LAST, CONTROL_NUMBERS, CONTROL_SCALE, control_input
from stepfuse.display import brief, listed
from stepfuse.pipeline.input_images import levels_of, shown, size_of
from stepfuse.samplers.table import StepTable

Array = npt.NDArray[np.float32]

#: Pictures by the name of the ControlNet that follows them.
Pictures = Mapping[str, Any]
#: Share of the steps, from 0, that a ControlNet acts at: where it begins and where it ends.
Range = tuple[float, float]
_WHOLE: Range = (0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Control:
    """What one ControlNet follows.

    Attributes:
        picture: Pillow images, upright, or an array.
        scale: Of its residuals.
        range: Share of the steps that it acts at.
    """

    picture: Any
    scale: float
    range: Range


def read_controls(names: tuple[str, ...], control: Any, scale: Any, range: Any) -> dict[str, Control]:
    """What a call gives for its ControlNets, checked; by name.

    Args:
        names: The bundle's ControlNets.
        control: Pictures by name, or None.
        scale: A number for all of them, or one by name; None is 1.
        range: A pair for all of them, or one by name; None is (0, 1).

    Raises:
        ValueError: If the bundle has no ControlNets, a name is not one of those given, a number is out of bounds, or
            ``scale`` or ``range`` comes without ``control``.
        TypeError: If an argument has the wrong type.
    """
    if control is None:
        for name, given in (("control_scale", scale), ("control_range", range)):
            if given is not None:
                raise ValueError(f"{name} needs control, got control=None")
        return {}
    if not isinstance(control, Mapping):
        raise TypeError(f"control must be a dict of pictures by the ControlNet's name, got {type(control).__name__}")
    if not names:
        raise ValueError(
            "control needs a bundle with ControlNets, which this one has not: stepfuse export FOLDER --controlnet"
            f" NAME=FOLDER makes one; got {listed(control)}"
        )
    _require_known("control", control, names)
    scales, ranges = _by_name("control_scale", scale, control, 1.0), _by_name("control_range", range, control, _WHOLE)
    return {
        name: Control(shown(f"control[{name!r}]", one, "RGB"), _scale(scales[name]), _range(ranges[name]))
        for name, one in control.items()
        if one is not None
    }


def size_of_controls(controls: Mapping[str, Control]) -> tuple[int, int] | None:
    """Width and height of the first picture that has a size."""
    return next((size for one in controls.values() if (size := size_of(one.picture)) is not None), None)


def conditioning_of(
    names: tuple[str, ...], controls: Mapping[str, Control], run: StepTable, width: int, height: int
) -> dict[str, Array]:
    """The denoiser's conditioning inputs for ControlNets.

    Args:
        names: The bundle's ControlNets.
        controls: What those follow that are to act.
        run: The steps that are taken.
        width: Of the picture, in pixels.
        height: Likewise.

    Returns:
        Pictures, (m, 3, H, W), 0 to 1, and rows (1, ControlNets) of scales and timesteps; none without ``controls``,
        whose null values are no ControlNet.

    Raises:
        ValueError: If a picture has another size or a value not between 0 and 1, or a range holds no step, or parts
            steps of the same timestep.
        TypeError: If a picture is no picture.
    """
    if not controls:
        return {}
    found: dict[str, Array] = {}
    numbers = {name: np.zeros((1, len(names)), dtype=np.float32) for name in CONTROL_NUMBERS}
    for name, one in controls.items():
        found[control_input(name)] = levels_of(f"control[{name!r}]", one.picture, width, height)
        place = 0, names.index(name)
        numbers[CONTROL_SCALE][place] = one.scale
        numbers[CONTROL_FIRST][place], numbers[CONTROL_LAST][place] = _timesteps(run, one.range)
    return {**found, **numbers}


def _timesteps(run: StepTable, range: Range) -> tuple[float, float]:
    """The highest and the lowest timestep of the steps that lie within a share of them, as diffusers counts them."""
    steps, t = np.arange(len(run)), run["t"]
    inside = ~((steps / len(run) < range[0]) | ((steps + 1) / len(run) > range[1]))
    if not inside.any():
        raise ValueError(f"control_range must hold at least one of {len(run)} steps, got {range}")
    first, last = t[inside].max(), t[inside].min()
    if not np.array_equal((t <= first) & (t >= last), inside):
        raise ValueError(
            f"control_range must not part steps of {run.sampler} that share a timestep, got {range} of {len(run)}"
            " steps: move an end by a step"
        )
    return float(first), float(last)


def _require_known(argument: str, given: Mapping[str, Any], names: Any) -> None:
    if unknown := set(given) - set(names):
        raise ValueError(f"{argument} must have names among {', '.join(names)}, got {listed(sorted(unknown, key=str))}")


def _by_name(argument: str, given: Any, control: Mapping[str, Any], default: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        return dict.fromkeys(control, default if given is None else given)
    _require_known(argument, given, list(control))
    return {**dict.fromkeys(control, default), **given}


def _scale(given: Any) -> float:
    scale = number("control_scale", given)
    if not math.isfinite(scale):
        raise ValueError(f"control_scale must be finite, got {scale}")
    return float(scale)


def _range(given: Any) -> Range:
    if not isinstance(given, list | tuple) or len(given) != 2:
        raise TypeError(f"control_range must be two numbers, where it begins and ends, got {brief(given)}")
    begin, end = (number("control_range", one) for one in given)
    if not 0 <= begin < end <= 1:
        raise ValueError(f"control_range must be two shares of the steps, 0 <= begin < end <= 1, got {brief(given)}")
    return float(begin), float(end)
