"""What the commands share: conditioning as it is typed, and how a run is described."""

from __future__ import annotations

from typing import Any

import stepfuse as sf
from stepfuse.samplers.names import steps_asked, steps_in_words


def parse_cond(info: sf.ModelInfo, text: str | None) -> Any:
    """The conditioning of ``--cond``, a class name or index; None is unconditional.

    Raises:
        ValueError: If ``--cond`` is given and the model does not have exactly one conditioning input, or that has no
            such class.
    """
    if text is None:
        return None
    if len(info.given_cond) != 1:
        raise ValueError(f"--cond needs a model with one conditioning input, this one has {len(info.given_cond)}")
    [spec] = info.given_cond.values()
    value = int(text) if text.isdigit() and text not in spec.names else text
    index = spec.value("--cond", value)
    return spec.names[int(index)] if isinstance(value, str) else value


def describe(table: sf.StepTable, *, conditional: bool = True) -> str:
    """Sampler, steps and guidance in words; samples without conditioning have no guidance."""
    scale = table.options.get("guidance_scale", 1.0)  # of one pass a step, too, where the network takes it as an input
    guidance = f", guidance {scale:g}" if conditional and scale not in (0, 1) else ""
    return f"{table.sampler}, {steps_in_words(table.options, len(table))}{guidance}"


def facts_of(table: sf.StepTable) -> dict[str, Any]:
    """The same for programs."""
    return {
        "sampler": table.sampler,
        "steps": steps_asked(table.options, len(table)),
        "guidance_scale": table.options.get("guidance_scale"),
    }


def refuse(reason: str, **given: object) -> None:
    """Refuses options that have no effect; None is one that is left out.

    Raises:
        ValueError: If one is given.
    """
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"--{name.replace('_', '-')} {reason}")
