"""A model in words, a line a fact: what ``stepfuse info`` and notebooks show."""

from __future__ import annotations

from stepfuse.bundle.cond_input import CondInput
from stepfuse.bundle.model_info import ModelInfo

_MOST_NAMES = 20
_GUIDANCE = {
    "classifier_free": "classifier-free, two passes a step",
    "embedded": "an input of the network, one pass a step",
    "none": "none to choose, one pass a step",
}


def facts_of_model(info: ModelInfo) -> list[tuple[str, str]]:
    """Names and values: sample, what it predicts, schedule, conditioning, guidance. They are not made safe to show."""
    return [
        ("sample", f"{' x '.join(map(str, info.shape))}, {info.data_range[0]:g} to {info.data_range[1]:g}"),
        ("predicts", info.prediction_type),
        ("schedule", f"{info.schedule.config['type']}, T = {info.schedule.num_train_timesteps}"),
        *((f"input {name}", _input(spec)) for name, spec in info.cond.items()),
        *([("guidance", _GUIDANCE[info.guidance])] if info.cond else []),
    ]


def defaults_in_words(info: ModelInfo) -> str:
    """``sampler ddim, steps 50``."""
    return ", ".join(f"{name} {value}" for name, value in info.defaults.items())


def _input(spec: CondInput) -> str:
    shown = (*spec.names[:_MOST_NAMES], "...") if len(spec.names) > _MOST_NAMES else spec.names
    names = f", {len(spec.names)} classes: {', '.join(shown)}" if spec.names else ""
    shape = " x ".join(map(str, spec.shape))
    return f"{spec.dtype}{f' {shape}' if shape else ''}, null {spec.null}{names}"
