"""A diffusers scheduler's configuration, read as a noise schedule and the options of one of our samplers.

It needs ``scheduler_config.json`` alone, not diffusers. Missing entries take the defaults of diffusers 0.42. Each entry
is decided by itself (``scheduler_entries``): one of the class is read, or refused where its value changes the numbers
in a way that is not covered; one of another scheduler is ignored, as diffusers ignores it; any other is refused,
whatever its value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepfuse.display import NAME, one_line, printable
from stepfuse.integrations.readers.dpm_solver import third_order
from stepfuse.integrations.readers.edm import EDMS, edm_schedule_of
from stepfuse.integrations.readers.entries import Entries, EntryError
from stepfuse.integrations.readers.flow import FLOW, FLOWS, dynamic_shift_of, flow_schedule_of, flow_sigmas_of
from stepfuse.integrations.readers.levels import schedule_of
from stepfuse.integrations.scheduler_entries import DEFAULTS, FORMER, KNOWN
from stepfuse.integrations.scheduler_readers import ALGORITHMS, READERS, with_algorithm
from stepfuse.integrations.uncovered import reason_of
from stepfuse.samplers.dynamic_shift import DynamicShift
from stepfuse.samplers.schedule import NoiseSchedule

__all__ = ["COVERED", "DEFAULTS", "SchedulerSettings", "UncoveredSchedulerError", "read_scheduler", "with_algorithm"]

# Which covered class comes nearest to one that is not, among those with the same kind of noise levels.
_NEAREST = {
    "DDIMParallelScheduler": "DDIMScheduler",
    "CogVideoXDDIMScheduler": "DDIMScheduler",
    "DDPMParallelScheduler": "DDPMScheduler",
    "UniPCMultistepScheduler": "DPMSolverMultistepScheduler",
    "DEISMultistepScheduler": "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler": "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler": "DPMSolverMultistepScheduler",
    "SASolverScheduler": "DPMSolverMultistepScheduler",
    "LMSDiscreteScheduler": "EulerDiscreteScheduler",
    "KDPM2DiscreteScheduler": "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler": "EulerAncestralDiscreteScheduler",
    "TCDScheduler": "LCMScheduler",
}


@dataclass(frozen=True)
class SchedulerSettings:
    """A scheduler's configuration in this package's terms.

    Attributes:
        schedule: Noise levels.
        prediction_type: ``epsilon``, ``v_prediction``, ``sample`` or ``flow``.
        defaults: ``sampler`` and its options, for ``ModelInfo.defaults`` or ``Engine.sample``.
        sampler_options: Options of each other sampler whose class, made ``from_config`` of this configuration, is
            covered; for ``ModelInfo.sampler_options``.
        dynamic_shift: How a flow's shift follows from the size of a picture; None: it is the schedule's.
    """

    schedule: NoiseSchedule
    prediction_type: str
    defaults: dict[str, Any]
    sampler_options: dict[str, dict[str, Any]]
    dynamic_shift: DynamicShift | None = None

    __repr__ = one_line


class UncoveredSchedulerError(ValueError):
    """A class, or an entry of one, that changes the numbers in a way that no sampler here does.

    Attributes:
        rule: What is not covered.
        instead: Classes that read the configuration, the nearest first; empty where none does.
    """

    def __init__(self, rule: str, instead: Sequence[str], *, configurable: bool) -> None:
        ways = ["change the scheduler's configuration"] if configurable else []
        if instead:
            ways.append(f"take {instead[0]}.from_config(scheduler.config), the nearest of {', '.join(instead)}")
        super().__init__(": ".join([rule, *([", or ".join(ways)] if ways else [])]))
        self.rule, self.instead = rule, tuple(instead)


def read_scheduler(config: Mapping[str, Any]) -> SchedulerSettings:
    """Reads the entries of a ``scheduler_config.json``, ``_class_name`` among them.

    Args:
        config: Entries by name; a missing one takes the default of the class. Those in a list ``_use_default_values``,
            as in the configuration of a scheduler that diffusers has made, are not handed on to other classes.

    Raises:
        UncoveredSchedulerError: If the class is not covered, or an entry changes its numbers in a way that no sampler
            here does; the message names class, entry and value, and classes that would do.
        ValueError: If an entry is unknown or out of bounds.
        TypeError: If an entry that must be a number is something else.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in READERS:
        rule = f"scheduler must be one of {', '.join(COVERED)}, got {printable(name, NAME)}{reason_of(str(name))}"
        raise UncoveredSchedulerError(rule, _instead_of(str(name), config), configurable=False)
    try:
        return _read(name, config)
    except EntryError as error:
        raise UncoveredSchedulerError(str(error), _instead_of(name, config), configurable=True) from error


def _instead_of(name: str, config: Mapping[str, Any]) -> list[str]:
    """Classes that read a configuration whose own class is not covered or refuses it, the nearest first.

    None where that class has noise levels of its own kind, which another would silently take for its own.
    """
    if name not in _NEAREST and name not in READERS:
        return []
    if name.startswith("FlowMatch"):
        candidates = [FLOW]
    elif name in EDMS:
        candidates = [EDMS[0]] if name in EDMS[:2] else []  # the last one's networks are of another kind
    else:
        nearest = _NEAREST.get(name, "DDIMScheduler")
        candidates = [nearest, *(one for one in READERS if one not in (nearest, *FLOWS, *EDMS))]
    found = []
    for one in candidates:
        if one == name:
            continue
        try:
            _read(one, config)
        except (ValueError, TypeError):
            continue
        found.append(one)
    return found


def _read(name: str, config: Mapping[str, Any]) -> SchedulerSettings:
    by_default = set(config.get("_use_default_values") or ())
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    handed_on = {key: value for key, value in config.items() if key not in by_default}
    for key, value in config.items():
        if key not in KNOWN:
            found = f"{printable(key, NAME)} = {printable(repr(value), NAME)}"
            raise ValueError(f"{name}: entries must be known, got {found}")
        if (neutral := FORMER.get(key)) is not None and value not in neutral:
            raise ValueError(f"{name}: {key}, of former versions, must be {neutral[0]!r} or left out, got {value!r}")
    filled = Entries(name, config)
    if name in FLOWS:
        schedule, moving = flow_schedule_of(filled), dynamic_shift_of(filled)
        return SchedulerSettings(schedule, "flow", READERS[name](filled, schedule), {}, moving)
    if name in EDMS:
        schedule = edm_schedule_of(filled)
        prediction = "epsilon"
        if "prediction_type" in filled:
            prediction = filled.require("prediction_type", "epsilon", "v_prediction")
        return SchedulerSettings(schedule, prediction, READERS[name](filled, schedule), {})
    if (of_flow := flow_sigmas_of(filled)) is not None:
        schedule, options = of_flow
        return SchedulerSettings(schedule, "flow", options, {})
    prediction = filled.require("prediction_type", "epsilon", "v_prediction", "sample")
    schedule = schedule_of(filled)
    defaults = READERS[name](filled, schedule)
    return SchedulerSettings(schedule, prediction, defaults, _others(defaults["sampler"], handed_on))


def _others(own: str, config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Options of the other samplers, as diffusers' ``from_config`` makes their classes of one's configuration."""
    found = {}
    for name, read in READERS.items():
        if name in (*FLOWS, *EDMS):
            continue
        for chosen in ALGORITHMS.get(name, ("",)):
            filled = Entries(name, with_algorithm(name, chosen, config))
            try:
                filled.require("prediction_type", "epsilon", "v_prediction", "sample")
                options = read(filled, schedule_of(filled))
            except (ValueError, TypeError):
                continue
            sampler = options.pop("sampler")
            if sampler == "dpmpp_2m_sde":
                found["dpmpp_3m_sde"] = third_order(options)
            if sampler != own:
                found[sampler] = options
    return found


#: The classes of diffusers that ``read_scheduler`` reads.
COVERED = tuple(READERS)
