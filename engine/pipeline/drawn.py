"""What is recorded of the pictures of one call, and the text entries that they are saved with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.bundle.identity import ModelIdentity
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.display import NAME, printable
from stepfuse.engine import Engine
from stepfuse.lora.adapters import AdapterSet
from stepfuse.pipeline.image_files import ENTRY, WEBUI_ENTRY
from stepfuse.pipeline.provenance import Provenance, digest_of
from stepfuse.pipeline.webui_text import webui_text
from stepfuse.requests.conditioning import cond_per_sample
from stepfuse.requests.editing import strength_or_default
from stepfuse.requests.partial_run import begin_late
from stepfuse.requests.resolution import Compiler
from stepfuse.samplers import SAMPLERS
from stepfuse.samplers.names import steps_asked, steps_in_words
from stepfuse.samplers.schedule import NoiseSchedule
from stepfuse.samplers.table import StepTable
from stepfuse.serving.batch import Callback
from stepfuse.serving.in_flight import Images
from stepfuse.version import __version__

_MOST_NUMBERS = 64  # of a conditioning input's value that is written out; a larger one is a digest
_FEW = 3  # conditions that a title names
_SHARES = ("strength", "denoising_start", "denoising_end")  # of a run, which say what was left out of it


class StopWatch:
    """A callback of ``Engine.sample`` that notes after how many forwards it has stopped the run.

    Attributes:
        stopped_after: None where it has not.
    """

    def __init__(self, callback: Callback) -> None:
        self._callback = callback
        self.stopped_after: int | None = None

    def __call__(self, step: int, total: int, preview: Images) -> bool | None:
        """Answers as the callback does."""
        try:
            answer = self._callback(step, total, preview)
        except StopIteration:
            self.stopped_after = step
            raise
        if answer is not None and not bool(answer):
            self.stopped_after = step
        return answer


def record(
    model: ModelIdentity | None,
    table: StepTable,
    seed: int,
    *,
    schedule: NoiseSchedule,
    max_rows: int | None = None,
    strength: float | None = None,
    run: StepTable | None = None,
    image: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    noise: npt.ArrayLike | None = None,
    stopped_after: int | None = None,
    lora: AdapterSet | None = None,
    **entries: Any,
) -> Provenance:
    """What is recorded of one picture, or of a grid.

    Args:
        model: What sampled it; None is a network of Python's.
        table: The whole run.
        seed: The picture's, or the first of the grid's.
        schedule: The model's noise levels.
        max_rows: Most rows of one forward.
        strength: As the caller gave it.
        run: The steps of ``table`` that were to be taken; None: those that ``strength`` leaves.
        image: What it began as.
        mask: Which part was repainted.
        noise: Starting noise that was given.
        stopped_after: As in ``Provenance``.
        lora: The LoRAs that it chose.
        **entries: More of ``Provenance``.
    """
    share = None if image is None else strength_or_default(strength, masked=mask is not None)
    if run is None:
        run = table if share is None else begin_late(table, share, schedule)
    return Provenance(
        version=__version__,
        model=model or ModelIdentity("custom"),
        sampler=table.sampler,
        options=table.options,
        table=table.digest,
        steps=len(table),
        steps_done=len(run) if stopped_after is None else min(stopped_after, len(run)),
        stopped_after=stopped_after,
        seed=seed,
        zero_init=table.zero_init,
        max_rows=max_rows,
        image=None if image is None else digest_of(image),
        mask=None if mask is None else digest_of(mask),
        noise=None if noise is None else digest_of(noise),
        strength=share,
        loras=None if lora is None else lora.record,
        **table.adaptation,
        **entries,
    )


def marked_if_custom(made: list[Provenance], table: StepTable, model: ModelInfo) -> list[Provenance]:
    """The records of pictures of a caller's table; marked where the sampler that it names does not compile it again.

    Args:
        made: Of one call.
        table: The caller's.
        model: What it samples.
    """
    options = made[0].sampler_arguments
    own = {name: options.pop(name, None) for name in ("sampler", "steps", "guidance_scale", "eta")}
    try:
        again = made[0].sampler in SAMPLERS and Compiler(model).compile(**own, options=options) == table
    except (ValueError, TypeError):
        again = False
    return made if again else [replace(one, custom_table=True) for one in made]


def batches(seeds: Sequence[int], *, alike: bool) -> list[tuple[int, int] | None]:
    """For each picture of a call how many were drawn and which of them it is; None where that does not say the others.

    Args:
        seeds: Of the pictures.
        alike: Whether nothing but their seeds tells them apart.
    """
    n = len(seeds)
    if n == 1 or not alike or list(seeds) != list(range(seeds[0], seeds[0] + n)):
        return [None] * n
    return [(n, index) for index in range(n)]


def conditions(engine: Engine, given: Any, n: int) -> list[Any] | None:
    """The conditioning of each sample as it is recorded; None where all are unconditional."""
    inputs = engine.info.given_cond
    found: list[Any] = []
    for row in cond_per_sample(inputs, given, n):
        values = {}
        for (name, spec), value in zip(inputs.items(), row or (), strict=row is not None):
            index = int(value) if value.ndim == 0 and value.dtype.kind == "i" else -1
            known = 0 <= index < len(spec.names)
            values[name] = spec.names[index] if known else _written(value)
        found.append(None if row is None else next(iter(values.values())) if len(inputs) == 1 else values)
    return None if all(one is None for one in found) else found


def labels(cond: Sequence[Any] | None, n: int) -> list[str]:
    """A caption a sample, of what ``conditions`` returns; all empty where none is conditional."""
    if cond is None:
        return [""] * n
    return ["unconditional" if one is None else one if isinstance(one, str) else _caption(one) for one in cond]


def title(made: Provenance) -> str:
    """What was drawn and how, on one line; conditions are named where they are few."""
    options, conditional = made.options, made.cond is not None or made.prompt is not None
    parts = [made.sampler, steps_in_words(options, made.steps, made.steps_done)]
    if made.prompt is None:
        shown = list(dict.fromkeys(labels(made.cond, 1))) if conditional else ["unconditional"]
        parts = ([printable(", ".join(shown), NAME)] if len(shown) <= _FEW else []) + parts
    scale = options.get("guidance_scale", 1.0)
    parts += [f"guidance {scale:g}"] if scale != 1 and conditional else []
    parts += [f"eta {options['eta']:g}"] if options.get("eta") else []
    parts += [f"{name} {share:g}" for name in _SHARES if (share := getattr(made, name)) is not None]
    parts += [f"{printable(name, NAME)} {one['scale']:g}" for name, one in (made.loras or {}).items()]
    return f"{printable(made.model.name, NAME)}: {', '.join(parts)}, seed {made.seed}"


def facts(made: Provenance) -> dict[str, str]:
    """The text entries of a picture: readable ones, ``ENTRY``, and of a prompt's that of the web interfaces."""
    scale = made.options.get("guidance_scale", 1.0)
    found = {
        "Software": f"stepfuse {made.version}",
        "Description": title(made),
        "prompt": made.prompt,
        "negative_prompt": made.negative_prompt,
        "seed": str(made.seed),
        "sampler": made.sampler,
        "steps": str(steps_asked(made.options, made.steps)),
        "guidance_scale": f"{scale:g}",
        **{name: None if (share := getattr(made, name)) is None else f"{share:g}" for name in _SHARES},
        WEBUI_ENTRY: None if made.prompt is None else webui_text(made),
        ENTRY: made.to_json(),
    }
    return {name: fact for name, fact in found.items() if fact}


def _written(value: npt.NDArray[Any]) -> Any:
    return value.tolist() if value.size <= _MOST_NUMBERS else digest_of(value)


def _caption(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_caption(one)}" for name, one in value.items() if not isinstance(one, dict))
    return "" if isinstance(value, list) else np.format_float_positional(value, trim="-")
