"""What a network is, apart from where its weights are and where it runs."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stepfuse.bundle.cond_input import MAX_ELEMENTS as MAX_COND_ELEMENTS
from stepfuse.bundle.cond_input import CondInput
from stepfuse.display import brief, one_line
from stepfuse.samplers import SAMPLERS
from stepfuse.samplers.schedule import NoiseSchedule
from stepfuse.samplers.table import StepTable

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow")
GUIDANCE = ("classifier_free", "embedded", "none")
#: The conditioning input that takes ``guidance_scale``, where guidance is embedded.
GUIDANCE_INPUT = "guidance"


MAX_ELEMENTS = 1 << 31  # of one sample; a manifest may say anything
MAX_DIMENSIONS, MAX_INPUTS = 16, 64


_DEFAULT_KINDS: dict[str, tuple[type, ...]] = {
    "sampler": (str,),
    "steps": (int,),
    "guidance_scale": (float, int),
    "eta": (float, int),
}


@dataclass(frozen=True)
class ModelInfo:
    """What a network is: everything a sampler and a loop must know of it, and nothing of where it runs.

    Attributes:
        shape: Shape of one sample, such as (C, H, W).
        schedule: Noise levels it was trained with.
        prediction_type: ``epsilon``, ``v_prediction``, ``sample`` or ``flow``.
        cond: Its conditioning inputs by name.
        timestep_dtype: ``float32``, or ``int64`` for a network that is given timesteps rounded.
        data_range: Least and greatest value of its samples.
        range_known: Whether images are held to that; False where it is only what pictures are drawn with.
        defaults: Arguments of ``Engine.sample`` where the caller gives none: sampler, steps, guidance_scale, ..., and
            the options of that sampler.
        sampler_options: Options by the name of each other sampler that may be taken in its place; empty where nothing
            is said of them.
        tables: Samplers of its own, such as ``stepfuse.fit`` makes, by the names of their files. A caller names them as
            any other (``StepTable.sampler``); several of one name differ in their options.
        guidance: ``classifier_free``: two predictions a step are blended by ``guidance_scale``. Of a network distilled
            from guided predictions, which takes one pass a step and no negative conditioning: ``embedded``, if its
            conditioning input ``guidance``, float32 (), takes ``guidance_scale``; ``none``, if it takes none.

    Examples:
        >>> info = sf.ModelInfo(shape=(3, 32, 32), schedule=sf.NoiseSchedule.linear(), prediction_type="v_prediction")
        >>> info.shape, info.data_range, info.timestep_dtype
        ((3, 32, 32), (-1.0, 1.0), 'float32')
    """

    shape: tuple[int, ...]
    schedule: NoiseSchedule
    prediction_type: str = "epsilon"
    cond: Mapping[str, CondInput] = field(default_factory=dict)
    timestep_dtype: str = "float32"
    data_range: tuple[float, float] = (-1.0, 1.0)
    range_known: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict)
    sampler_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tables: Mapping[str, StepTable] = field(default_factory=dict)
    guidance: str = "classifier_free"

    __repr__ = one_line

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(operator.index(size) for size in self.shape))
        if not 1 <= len(self.shape) <= MAX_DIMENSIONS or min(self.shape) < 1 or math.prod(self.shape) > MAX_ELEMENTS:
            raise ValueError(
                f"shape must be 1 to {MAX_DIMENSIONS} sizes of at least 1, at most 2^31 in all, got {brief(self.shape)}"
            )
        if sum(one.elements for one in self.cond.values()) > MAX_COND_ELEMENTS or len(self.cond) > MAX_INPUTS:
            raise ValueError(
                f"cond must be at most {MAX_INPUTS} inputs with at most 2^25 numbers a row in all, got {len(self.cond)}"
                f" with {sum(one.elements for one in self.cond.values())}"
            )
        low, high = self.data_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"data_range must be two finite numbers, the lower first, got {self.data_range}")
        for name, kinds in _DEFAULT_KINDS.items():
            if not isinstance(self.defaults.get(name, kinds[0]()), kinds):
                raise ValueError(f"defaults: {name} must be {kinds[0].__name__}, got {brief(self.defaults[name])}")
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got {brief(self.prediction_type)}"
            )
        if (self.prediction_type == "flow") != self.schedule.is_flow:
            raise ValueError(f"prediction_type 'flow' and a flow schedule go together, got {self.prediction_type!r}")
        if self.schedule.is_edm:
            if self.prediction_type not in ("epsilon", "v_prediction"):
                raise ValueError(
                    "prediction_type must be 'epsilon' or 'v_prediction' with an EDM schedule, got"
                    f" {self.prediction_type!r}"
                )
            if self.timestep_dtype != "float32":
                raise ValueError(f"timestep_dtype must be 'float32' with an EDM schedule, got {self.timestep_dtype!r}")
        for file, table in self.tables.items():
            first, last = self.schedule.min_timestep, self.schedule.max_timestep
            if table.sampler in SAMPLERS or (table.min_timestep, table.max_timestep) != (first, last):
                raise ValueError(
                    f"tables[{brief(file)}] must be of a schedule from timestep {first:g} to {last:g}, with a name that"
                    f" no sampler has, got {brief(table.sampler)} from {table.min_timestep:g} to {table.max_timestep}"
                )
        if self.timestep_dtype not in ("float32", "int64"):
            raise ValueError(f"timestep_dtype must be 'float32' or 'int64', got {brief(self.timestep_dtype)}")
        if self.guidance not in GUIDANCE:
            raise ValueError(f"guidance must be one of {', '.join(GUIDANCE)}, got {brief(self.guidance)}")
        if self.guidance == "embedded":
            spec = self.cond.get(GUIDANCE_INPUT)
            if spec is None or (spec.dtype, spec.shape) != ("float32", ()):
                raise ValueError(
                    f"guidance 'embedded' needs an input {GUIDANCE_INPUT}, float32 of shape (), in cond, got {spec}"
                )

    @property
    def given_cond(self) -> Mapping[str, CondInput]:
        """The conditioning inputs that a caller gives values for: all but the one that takes ``guidance_scale``.

        Examples:
            >>> sf.Bundle.load("fashion").info.given_cond.keys()
            dict_keys(['class_labels'])
        """
        if self.guidance != "embedded":
            return self.cond
        return {name: spec for name, spec in self.cond.items() if name != GUIDANCE_INPUT}
