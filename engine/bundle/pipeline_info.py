"""What a bundle of a whole pipeline holds beside the denoiser, as its manifest says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from stepfuse.display import brief
from stepfuse.samplers.dynamic_shift import DynamicShift

TEXT_ENCODER = "text_encoder.onnx"
VAE_DECODER = "vae_decoder.onnx"
VAE_ENCODER = "vae_encoder.onnx"

LONGEST_CONTEXT = 1 << 16  # tokens
_MOST_PROMPTS = 16
_MOST_CONTROLS = 16
_HIGHEST_SCORE = 1000

#: Conditioning inputs of a denoiser with ControlNets, for each of them a number: the scale of its residuals, and the
#: first (highest) and the last timestep that it acts at.
CONTROL_NUMBERS = CONTROL_SCALE, CONTROL_FIRST, CONTROL_LAST = "control_scale", "control_first", "control_last"
_CONTROL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LONGEST_TEMPLATE = 1 << 14  # characters


@dataclass(frozen=True)
class PromptInput:
    """How a prompt becomes one input of the text encoder.

    Attributes:
        input: The text encoder's input, token ids of shape (R, length), int64.
        tokenizer: A file of the ``tokenizers`` library in the bundle.
        length: Tokens of its context; longer prompts are cut, shorter ones padded.
        pad_id: Token that fills what a prompt leaves.
        mask: The text encoder's attention mask, (R, length), int64: 1 for the prompt's tokens, 0 for padding; None
            where it takes none.
        prefix: Text before the prompt, of a template such as a chat's; both are tokenized as one text.
        suffix: Text after it.
        lowercase: Whether the prompt is first written in lower case, without white space at its ends.
    """

    input: str
    tokenizer: str
    length: int
    pad_id: int
    mask: str | None = None
    prefix: str = ""
    suffix: str = ""
    lowercase: bool = False

    def __post_init__(self) -> None:
        for name in ("input", "tokenizer"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"prompts: {name} must be a text, got {brief(getattr(self, name))}")
        if self.mask is not None and (not isinstance(self.mask, str) or self.mask in ("", self.input)):
            raise ValueError(f"prompts: mask must be another input's name or null, got {brief(self.mask)}")
        for name in ("prefix", "suffix"):
            if not isinstance(given := getattr(self, name), str) or len(given) > _LONGEST_TEMPLATE:
                raise ValueError(
                    f"prompts: {name} must be a text of at most {_LONGEST_TEMPLATE:,} characters, got {brief(given)}"
                )
        if not isinstance(self.lowercase, bool):
            raise ValueError(f"prompts: lowercase must be true or false, got {brief(self.lowercase)}")
        if not _whole(self.length) or not 1 <= self.length <= LONGEST_CONTEXT:
            raise ValueError(f"prompts: length must be at least 1, at most {LONGEST_CONTEXT}, got {brief(self.length)}")
        if not _whole(self.pad_id) or not 0 <= self.pad_id < 1 << 31:
            raise ValueError(f"prompts: pad_id must be at least 0 and below 2^31, got {brief(self.pad_id)}")

    def text(self, prompt: str) -> str:
        """The text that is tokenized for a prompt."""
        return self.prefix + (prompt.lower().strip() if self.lowercase else prompt) + self.suffix

    @property
    def config(self) -> dict[str, Any]:
        """The manifest's entry, without what is as usual."""
        usual = {one.name: one.default for one in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != usual[name]}


@dataclass(frozen=True)
class PipelineInfo:
    """What turns prompts into conditioning, and samples into pictures.

    Attributes:
        source: The diffusers class that it was exported from.
        prompts: How a prompt becomes the text encoder's inputs; empty for a pipeline without text.
        pixels_per_latent: Pixels a side of one cell of a sample: 8 for most, 1 without a VAE.
        size_multiple: Height and width in pixels are multiples of this.
        fixed_size: Whether only the size of ``ModelInfo.shape`` can be drawn.
        max_size: Most pixels a side; None: no bound but memory.
        size_input: Conditioning input, float32 (6,), that takes (height, width, top, left, height, width) of the
            picture, as Stable Diffusion XL's ``time_ids`` (Podell et al., 2023, section 2.2); None where there is none.
        zeros_without_negative: Whether a missing negative prompt means zeros instead of the embedding of "".
        dynamic_shift: How the shift of a flow follows from the picture's size; None: it does not.
        aesthetic_scores: Of the picture and of the unconditional pass: then ``size_input``, of shape (5,), takes
            (height, width, top, left, score), as the refiner of Stable Diffusion XL does; None: it takes no score.
        masked_input: Conditioning input, float32, that takes the picture without what is repainted, as inpainting
            models do: the mask and then latents, (1 + C, h, w), or latents and then the mask with each pixel of a cell
            as a channel, (C + pixels_per_latent^2, h, w); None where there is none.
        controls: Names of the ControlNets in the denoiser. Its conditioning inputs are a picture of each,
            ``control_input``, float32 (3, H, W), 0 to 1, and ``CONTROL_NUMBERS``, shape (ControlNets,).
        encoded_controls: Whether it takes latents of these pictures instead, ``encoded_control_input``, (C, h, w), as
            Stable Diffusion 3's ControlNets do.
        negative_prompts: The same as ``prompts`` for a negative prompt, which may have another template and context;
            empty: as ``prompts``.
    """

    source: str
    prompts: tuple[PromptInput, ...] = ()
    pixels_per_latent: int = 8
    size_multiple: int = 8
    fixed_size: bool = False
    max_size: int | None = None
    size_input: str | None = None
    zeros_without_negative: bool = False
    dynamic_shift: DynamicShift | None = None
    aesthetic_scores: tuple[float, float] | None = None
    masked_input: str | None = None
    controls: tuple[str, ...] = ()
    encoded_controls: bool = False
    negative_prompts: tuple[PromptInput, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.source, str) or not self.source:
            raise ValueError(f"pipeline: source must be a text, got {brief(self.source)}")
        for name in ("pixels_per_latent", "size_multiple"):
            if not _whole(getattr(self, name)) or getattr(self, name) < 1:
                raise ValueError(f"pipeline: {name} must be at least 1, got {brief(getattr(self, name))}")
        for name in ("fixed_size", "zeros_without_negative", "encoded_controls"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"pipeline: {name} must be true or false, got {brief(getattr(self, name))}")
        if self.max_size is not None and (not _whole(self.max_size) or self.max_size < 1):
            raise ValueError(f"pipeline: max_size must be at least 1 or null, got {brief(self.max_size)}")
        for name in ("size_input", "masked_input"):
            if getattr(self, name) is not None and not isinstance(getattr(self, name), str):
                raise ValueError(f"pipeline: {name} must be a text or null, got {brief(getattr(self, name))}")
        scores = self.aesthetic_scores
        if scores is not None and (len(scores) != 2 or not all(map(_score, scores)) or self.size_input is None):
            raise ValueError(
                f"pipeline: aesthetic_scores must be two numbers up to {_HIGHEST_SCORE} beside a size_input, got"
                f" {brief(scores)}"
            )
        for name in self.controls:
            require_control_name(name)
        if len(set(self.controls)) < len(self.controls) or len(self.controls) > _MOST_CONTROLS:
            raise ValueError(
                f"pipeline: controls must be at most {_MOST_CONTROLS} different names, got {brief(self.controls)}"
            )
        if self.size_multiple % self.pixels_per_latent:
            raise ValueError(
                f"pipeline: size_multiple must be a multiple of pixels_per_latent, {self.pixels_per_latent},"
                f" got {self.size_multiple}"
            )
        inputs, others = ([(one.input, one.mask) for one in each] for each in (self.prompts, self.negative_prompts))
        if others and inputs != others:
            raise ValueError(f"pipeline: negative_prompts must have the inputs of prompts, {inputs}, got {others}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PipelineInfo:
        """From a manifest's entry.

        Raises:
            ValueError: If a value is out of bounds.
            TypeError: If a name is unknown or missing.
        """
        prompts = {name: _prompts(name, config.get(name, [])) for name in ("prompts", "negative_prompts")}
        dynamic = config.get("dynamic_shift")
        if not isinstance(dynamic, Mapping | None):
            raise ValueError(f"pipeline: dynamic_shift must be an object or null, got {brief(dynamic)}")
        lists = {name: config[name] for name in ("aesthetic_scores", "controls") if name in config}
        for name, value in lists.items():
            if not isinstance(value, list | tuple):
                raise ValueError(f"pipeline: {name} must be a list, got {brief(value)}")
        made: dict[str, Any] = {name: tuple(value) for name, value in lists.items()}
        made |= {**prompts, "dynamic_shift": None if dynamic is None else DynamicShift(**dynamic)}
        return cls(**{**config, **made})

    def shift_for(self, height: int, width: int) -> float | None:
        """The shift of a flow for a sample of this size, in cells; None where it does not follow from it.

        Raises:
            ValueError: If it is not above 0 and finite.
        """
        if self.dynamic_shift is None:
            return None
        patch = self.size_multiple // self.pixels_per_latent
        return self.dynamic_shift.at((height // patch) * (width // patch))

    @property
    def config(self) -> dict[str, Any]:
        """The manifest's entry."""
        prompts = {name: [one.config for one in getattr(self, name)] for name in ("prompts", "negative_prompts")}
        entry = {**asdict(self), **prompts}
        return {name: value for name, value in entry.items() if value or name not in _LEFT_OUT}

    @property
    def inputs(self) -> dict[str, tuple[str, ...]]:
        """The denoiser's conditioning inputs that no prompt feeds, by the entry that asks for them."""
        found = {name: getattr(self, name) for name in ("size_input", "masked_input")}
        named: dict[str, tuple[str, ...]] = {name: (one,) for name, one in found.items() if one is not None}
        if self.controls:
            pictures = map(encoded_control_input if self.encoded_controls else control_input, self.controls)
            named["controls"] = (*pictures, *CONTROL_NUMBERS)
        return named


#: Entries of a manifest that are left out where they say nothing.
_LEFT_OUT = {"dynamic_shift", "aesthetic_scores", "masked_input", "controls", "encoded_controls", "negative_prompts"}


def control_input(name: str) -> str:
    """The denoiser's input that takes the picture of a ControlNet."""
    return f"control_of_{name}"


def encoded_control_input(name: str) -> str:
    """The denoiser's input that takes the latents of that picture instead."""
    return f"encoded_control_of_{name}"


def require_control_name(name: Any) -> None:
    """Refuses what cannot be the name of a ControlNet.

    Raises:
        ValueError: If it is no text of 1 to 64 letters, digits, ``_`` and ``-``.
    """
    if not isinstance(name, str) or not _CONTROL_NAME.fullmatch(name):
        raise ValueError(f"a ControlNet's name must be 1 to 64 letters, digits, _ and -, got {brief(name)}")


def _score(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _HIGHEST_SCORE


def _prompts(name: str, given: Any) -> tuple[PromptInput, ...]:
    if not isinstance(given, list | tuple) or len(given) > _MOST_PROMPTS:
        raise ValueError(f"pipeline: {name} must be a list of at most {_MOST_PROMPTS}, got {brief(given)}")
    return tuple(PromptInput(**one) for one in given)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
