"""The denoiser's conditioning for a call's pictures, from prompts or from the caller's own embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.bundle.model_info import ModelInfo
from stepfuse.bundle.pipeline_info import LONGEST_CONTEXT, PipelineInfo
from stepfuse.display import listed
from stepfuse.lora.adapters import AdapterSet
from stepfuse.pipeline.prompts import PromptEncoder

Embeddings = Mapping[str, npt.ArrayLike]
Conditioning = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Rows:
    """Conditioning that is checked and yet to be encoded.

    Attributes:
        texts: The prompts; none if embeddings were given.
        count: Rows, one a prompt.
        encode: Makes them, with LoRAs or without: by conditioning input an array (count, *shape of the input). It
            raises DenoiserError if the text encoder fails, and EngineClosed if it is closed.
        tokens: Tokens of the embeddings, where that is not the model's own number.
        filler: Makes one row of what follows where the other pass has more tokens; None: nothing may.
    """

    texts: Sequence[str]
    count: int
    encode: Callable[[AdapterSet | None], Conditioning]
    tokens: int | None = None
    filler: Callable[[AdapterSet | None], Conditioning] | None = None


class PromptConditioning:
    """Checks prompts, or the embeddings given instead of them, and says how they are encoded.

    Args:
        model: The denoiser.
        pipeline: The pipeline around it.
        encoder: Encodes prompts.
    """

    def __init__(self, model: ModelInfo, pipeline: PipelineInfo, encoder: PromptEncoder) -> None:
        self._model = model
        self._pipeline = pipeline
        self._encoder = encoder
        self._free = [name for name in encoder.outputs if model.cond[name].free == "length"]
        self._context = model.cond[self._free[0]].shape[0] if self._free else 0

    def conditional(self, prompt: str | Sequence[str] | None, embeds: Embeddings | None, name: str = "prompt") -> Rows:
        """The conditioning of ``prompt`` or ``embeds``, of which one must be given.

        Raises:
            ValueError: If neither or both are given, there is no prompt, one is too long, or the embeddings lack an
                input, have one that the denoiser does not, or have another shape or different numbers of rows.
            TypeError: If a prompt is not a text, or ``embeds`` not a mapping.
            BundleError: If a tokenizer fails.
        """
        if (prompt is None) == (embeds is None):
            raise ValueError(f"give {name} or {name}_embeds, and not both")
        if prompt is not None:
            return self._of_texts(as_texts(name, prompt), negative=name == "negative_prompt")
        if not isinstance(embeds, Mapping):
            raise TypeError(f"{name}_embeds must be a dict by conditioning input, got {type(embeds).__name__}")
        conditioning = self._checked(f"{name}_embeds", embeds)
        return replace(_given(conditioning), tokens=self._tokens_of(f"{name}_embeds", conditioning))

    def unconditional(self, prompt: str | Sequence[str] | None, embeds: Embeddings | None, count: int) -> Rows:
        """The conditioning of the unconditional pass: one row for all of ``count`` prompts, or one a prompt.

        Returns:
            As of ``conditional``; without ``prompt`` and ``embeds`` the empty prompt's, or zeros where the pipeline
            takes those.

        Raises:
            ValueError: As in ``conditional``, and if there are neither one nor ``count`` rows.
            TypeError: As in ``conditional``.
            BundleError: If a tokenizer fails.
        """
        if prompt is None and embeds is None:
            if not self._pipeline.zeros_without_negative:
                return replace(self._of_texts([""], negative=True), texts=[])
            inputs = ((name, self._model.cond[name]) for name in self._encoder.outputs)
            zeros = {name: np.zeros((1, *spec.shape), dtype=spec.dtype) for name, spec in inputs}
            return replace(_given(zeros), filler=lambda lora: zeros)
        rows = self.conditional(prompt, embeds, "negative_prompt")
        if rows.count not in (1, count):
            raise ValueError(f"negative_prompt must be one, or one for each of the {count} prompts, got {rows.count}")
        return rows

    def of_one_length(self, conditional: Rows, unconditional: Rows) -> tuple[Rows, Rows]:
        """Both, with as many tokens each: prompts are followed by empty contexts, zeros by zeros.

        Raises:
            ValueError: If the shorter one was given as embeddings, or the longer one is not of whole contexts.
        """
        lengths = [one.tokens or self._context for one in (conditional, unconditional)]
        most = max(lengths)
        first, second = (
            one if own == most else self._extended(name, one, own, most)
            for name, one, own in zip(("prompt", "negative_prompt"), (conditional, unconditional), lengths, strict=True)
        )
        return first, second

    def _extended(self, name: str, rows: Rows, own: int, tokens: int) -> Rows:
        filler = rows.filler
        if filler is None or tokens % self._context:
            raise ValueError(
                f"{name}_embeds must have as many tokens as the other pass of guidance has, {tokens}, got {own}: a"
                f" prompt in their place is followed by empty contexts where that is a multiple of {self._context}"
            )

        def encode(lora: AdapterSet | None) -> Conditioning:
            found, filling = rows.encode(lora), filler(lora)
            for free in self._free:
                empty = np.tile(filling[free], (len(found[free]), tokens // self._context - 1, 1))
                found = {**found, free: np.concatenate([found[free], empty], axis=1)}
            return found

        return replace(rows, encode=encode, tokens=tokens)

    def _of_texts(self, texts: Sequence[str], *, negative: bool) -> Rows:
        tokens = self._encoder.tokens(texts, negative=negative)

        def empty(lora: AdapterSet | None) -> Conditioning:
            return self._encoder.encode(self._encoder.tokens([""], negative=negative), lora)

        return Rows(texts, len(texts), lambda lora: self._encoder.encode(tokens, lora), filler=empty)

    def _checked(self, name: str, embeds: Embeddings) -> Conditioning:
        inputs, needed = self._model.given_cond, self._encoder.outputs
        if not set(needed) <= set(embeds) <= set(inputs):
            allowed = f"{', '.join(needed)}, and may hold others of {', '.join(inputs)}"
            raise ValueError(f"{name} must hold {allowed}, got {listed(embeds) or 'nothing'}")
        conditioning: Conditioning = {}
        for key, given in embeds.items():
            array, shape = np.asarray(given), inputs[key].shape
            rule = f"{shape} or (n, *{shape})"
            if key in self._free and array.ndim in (len(shape), len(shape) + 1):
                shape = (array.shape[-len(shape)], *shape[1:])
                rule += f", with 1 to {LONGEST_CONTEXT} tokens in the place of {self._context}"
                shape = shape if 1 <= shape[0] <= LONGEST_CONTEXT else inputs[key].shape
            conditioning[key] = array[None] if array.shape == shape else array
            if conditioning[key].shape[1:] != shape or not len(conditioning[key]):
                raise ValueError(f"{key} of {name} must have shape {rule}, got {array.shape}")
        if len({len(array) for array in conditioning.values()} - {1}) > 1:
            lengths = ", ".join(f"{key} {len(array)}" for key, array in conditioning.items())
            raise ValueError(f"{name} must hold as many rows of each input, got {lengths}")
        rows = max(map(len, conditioning.values()))
        return {key: np.repeat(array, rows // len(array), axis=0) for key, array in conditioning.items()}

    def _tokens_of(self, name: str, conditioning: Conditioning) -> int | None:
        """The number of tokens of embeddings, None where it is the model's own."""
        lengths = {conditioning[free].shape[1] for free in self._free}
        if len(lengths) > 1:
            raise ValueError(
                f"{name} must have as many tokens in each of {', '.join(self._free)}, got {listed(lengths)}"
            )
        return next(iter(lengths - {self._context}), None)


def _given(conditioning: Conditioning) -> Rows:
    return Rows([], len(next(iter(conditioning.values()))), lambda lora: conditioning)


def as_texts(name: str, given: str | Sequence[str]) -> list[str]:
    """Prompts as a list.

    Raises:
        ValueError: If the list is empty.
        TypeError: If ``given`` is neither a text nor a list of texts.
    """
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list | tuple) or not all(isinstance(one, str) for one in texts):
        raise TypeError(f"{name} must be a text or a list of texts, got {given!r}")
    if not texts:
        raise ValueError(f"{name} must hold at least one text, got {given!r}")
    return list(texts)


def row_per_picture(name: str, rows: npt.NDArray[Any], count: int, n: int) -> npt.NDArray[Any]:
    """A row for each of ``n`` pictures, from one for all, one for each of ``count`` prompts, or one a picture.

    Raises:
        ValueError: If there is another number of rows.
    """
    require_rows(name, len(rows), count, n)
    return np.repeat(rows, n // len(rows), axis=0)


def require_rows(name: str, rows: int, count: int, n: int) -> None:
    """Refuses what ``row_per_picture`` does.

    Raises:
        ValueError: If there is another number of rows.
    """
    if rows not in (1, count, n):
        raise ValueError(f"{name} must be one, or one for each of {count} prompts or {n} pictures, got {rows}")
