"""How a picture was drawn, as one JSON text that is read back exactly."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.arguments import plain
from stepfuse.bundle.identity import ModelIdentity
from stepfuse.display import brief, one_line
from stepfuse.files.strict_json import parse_json
from stepfuse.requests.sampler_defaults import OF_TABLES

FORMAT = 1
MOST_BYTES = 1 << 20  # of the text: the classes of a hundred thousand samples


@dataclass(frozen=True)
class Provenance:
    """How a picture, or a grid of pictures, was drawn. What does not apply is None.

    Attributes:
        version: Of stepfuse.
        model: Name and digests of the model, and what computed it.
        sampler: The sampler's name.
        options: All its arguments but the schedule, guidance scale, eta, spacing, timesteps and interval among them.
        guidance_rescale: As in ``StepTable.adapt``.
        dynamic_threshold: Likewise.
        apg: Likewise.
        apg_form: Likewise.
        cfg_zero_star: Likewise.
        cfg_renorm: Likewise.
        zero_init: As in ``StepTable.with_zero_init``, of the whole run.
        table: ``StepTable.digest`` of the whole run's table.
        custom_table: Whether that was given, and is not what the sampler compiles from ``options``.
        steps: Rows of that table.
        steps_done: Rows that were run: fewer where ``strength``, ``denoising_start``, ``denoising_end`` or a callback
            left some out; where a callback stopped more samples than one forward takes, those of the sample that had
            run furthest.
        stopped_after: Forwards after which a callback stopped the run.
        seed: Seed of the picture; of a grid the first of them.
        number: Samples in the file; sample i has seed ``seed + i``.
        batch: Of a picture that was drawn with others: how many were drawn, and which of them it is, from 0.
        max_rows: Most rows of one forward: last bits may depend on it.
        cond: Conditioning of each sample: a class name, a number, a list of numbers, None where it was unconditional;
            digest and shape of a large array; a dict of these where there are several inputs.
        negative_cond: The same of guidance's unconditional pass.
        prompt, negative_prompt, width, height: Of a pipeline with prompts.
        image, mask, noise: Digest and shape of an array that it began with (``digest_of``).
        strength: Share of the steps that ``image`` left.
        denoising_start, denoising_end: As in ``TextToImage``; with the former ``noise`` is what the run went on from.
        sample_posterior: As in ``TextToImage``.
        control: By name of a ControlNet what it followed: digest and shape of the picture, ``scale`` and ``range``.
        loras: LoRAs that the request chose: ``sha256`` of each file, and its ``scale``, by name.
        columns: Samples a row of a grid.
        walk: How ``stepfuse interpolate`` chose its noises.

    Examples:
        >>> with sf.Engine.load("fashion") as engine:
        ...     made = sf.sample_pictures(engine, cond="bag", steps=4, seed=5).provenance[0]
        >>> made.seed, made.steps, made.cond
        (5, 4, ['bag'])
        >>> sf.Provenance.from_json(made.to_json()) == made
        True
        >>> sorted(made.sampler_arguments)[:3]
        ['apg', 'apg_form', 'cfg_pp']
    """

    version: str
    model: ModelIdentity
    sampler: str
    options: Mapping[str, Any]
    table: str
    steps: int
    steps_done: int
    seed: int
    guidance_rescale: float = 0.0
    dynamic_threshold: tuple[float, float] | None = None
    apg: tuple[float, float] | None = None
    apg_form: str = "diffusers"
    cfg_zero_star: bool = False
    cfg_renorm: int = 0
    zero_init: int = 0
    custom_table: bool = False
    stopped_after: int | None = None
    number: int = 1
    batch: tuple[int, int] | None = None
    max_rows: int | None = None
    cond: list[Any] | None = None
    negative_cond: list[Any] | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    image: Mapping[str, Any] | None = None
    mask: Mapping[str, Any] | None = None
    noise: Mapping[str, Any] | None = None
    strength: float | None = None
    sample_posterior: bool = False
    loras: Mapping[str, Mapping[str, Any]] | None = None
    columns: int | None = None
    walk: Mapping[str, Any] | None = None
    control: Mapping[str, Any] | None = None
    denoising_start: float | None = None
    denoising_end: float | None = None

    __repr__ = one_line

    def to_json(self) -> str:
        """The JSON text, in ASCII, the same for the same values; what has its default is left out."""
        found: dict[str, Any] = {"format": FORMAT}
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            if value != default:
                found[name] = plain(value)
        found["model"] = {"name": self.model.name, "files": dict(self.model.files)}
        if self.model.computed_by:
            found["model"]["computed_by"] = self.model.computed_by
        return json.dumps(found, default=str)

    @property
    def sampler_arguments(self) -> dict[str, Any]:
        """Arguments of ``Engine.table``, and of ``TextToImage``, that compile the table again: all are named.

        Not what the model and ``strength`` say: the prediction type, and where a run begins.
        """
        options = {name: value for name, value in self.options.items() if name not in ("prediction_type", "begin")}
        return {"sampler": self.sampler, **options, **{name: getattr(self, name) for name in OF_TABLES}}

    @classmethod
    def from_json(cls, text: str | bytes) -> Provenance:
        """Reads what ``to_json`` wrote, from a picture of unknown origin.

        Raises:
            ValueError: If the text is longer than 1 MiB, no JSON, of another format or version of it, or an entry is
                missing, unknown or of the wrong kind.
        """
        data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        if len(data) > MOST_BYTES:
            raise ValueError(f"an entry must be at most {MOST_BYTES:,} bytes, got {len(data):,}")
        given = parse_json(data)
        if not isinstance(given, dict) or given.pop("format", None) != FORMAT:
            raise ValueError(f"an entry must be an object of format {FORMAT}, got {brief(given)}")
        kinds = {one.name: one for one in fields(cls)}
        if unknown := given.keys() - kinds.keys():
            raise ValueError(f"entries must be among {', '.join(kinds)}, got {brief(sorted(unknown))}")
        required = [name for name in kinds if name in _REQUIRED and name not in given]
        if required:
            raise ValueError(f"entries must say {', '.join(_REQUIRED)}, {', '.join(required)} is missing")
        return cls(**{name: _checked(name, value) for name, value in given.items()})


_DEFAULTS = {one.name: one.default for one in fields(Provenance)}  # asked for at every picture


def digest_of(array: npt.ArrayLike) -> dict[str, Any]:
    """What stands for an array that a run was given: ``sha256`` of its float32 values in memory order, ``shape``."""
    values = np.ascontiguousarray(array, dtype="<f4")
    return {"sha256": hashlib.sha256(values.tobytes()).hexdigest(), "shape": list(values.shape)}


def _whole(value: Any, limit: int = 1 << 31) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < limit


def _number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and (isinstance(value, float) or value.bit_length() < 1000) and not math.isnan(value)


def _pair(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(holds, value))


def _digest(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"sha256", "shape"}:
        return False
    return isinstance(value["sha256"], str) and isinstance(value["shape"], list) and all(map(_whole, value["shape"]))


def _model(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() - {"computed_by"} != {"name", "files"}:
        return False
    if not isinstance(value["files"], dict):
        return False
    texts = (value["name"], value.get("computed_by", ""), *value["files"].values())
    return all(isinstance(one, str) for one in texts)


def _loras(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return all(
        isinstance(one, dict)
        and one.keys() == {"sha256", "scale"}
        and isinstance(one["sha256"], str)
        and _number(one["scale"])
        for one in value.values()
    )


_REQUIRED = ("version", "model", "sampler", "options", "table", "steps", "steps_done", "seed")

_Rule = tuple[str, Callable[[Any], bool]]
_TEXT: _Rule = "a text", lambda value: isinstance(value, str)
_COUNT: _Rule = "a whole number from 0 to 2^31 - 1", _whole
_SIZE: _Rule = "a whole number from 1 to 2^20", lambda value: _whole(value, (1 << 20) + 1) and value > 0
_FLAG: _Rule = "true or false", lambda value: isinstance(value, bool)
_OBJECT: _Rule = "an object", lambda value: isinstance(value, dict)
_LIST: _Rule = "a list", lambda value: isinstance(value, list)
_DIGEST: _Rule = "an object of sha256 and shape", _digest
_NUMBER: _Rule = "a number", _number

#: What an entry of a text of unknown origin must be.
_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(("version", "sampler", "table", "prompt", "negative_prompt", "apg_form"), _TEXT),
    **dict.fromkeys(("steps", "steps_done", "stopped_after", "zero_init", "cfg_renorm"), _COUNT),
    **dict.fromkeys(("number", "max_rows", "width", "height", "columns"), _SIZE),
    **dict.fromkeys(("custom_table", "sample_posterior", "cfg_zero_star"), _FLAG),
    **dict.fromkeys(("options", "walk", "control"), _OBJECT),
    **dict.fromkeys(("cond", "negative_cond"), _LIST),
    **dict.fromkeys(("image", "mask", "noise"), _DIGEST),
    **dict.fromkeys(("guidance_rescale", "strength", "denoising_start", "denoising_end"), _NUMBER),
    "model": ("an object of name and files, digests by name", _model),
    "loras": ("an object of sha256 and scale by name", _loras),
    "seed": ("a whole number from 0 to 2^64 - 1", lambda value: _whole(value, 1 << 64)),
    "batch": ("a count and a place in it", lambda value: _pair(value, _whole) and value[1] < value[0]),
    **dict.fromkeys(("dynamic_threshold", "apg"), ("two numbers", lambda value: _pair(value, _number))),
}


def _checked(name: str, value: Any) -> Any:
    """An entry of a text of unknown origin, of its type."""
    rule, holds = _RULES[name]
    if not holds(value):
        raise ValueError(f"{name} must be {rule}, got {brief(value)}")
    if name == "model":
        return ModelIdentity(**value)
    return tuple(value) if name in ("batch", "dynamic_threshold", "apg") else value
