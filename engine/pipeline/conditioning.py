"""The denoiser's conditioning for a call's pictures, from prompts or from the caller's own embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.bundle.model_info import ModelInfo
from stepfuse.bundle.pipeline_info import PipelineInfo
from stepfuse.display import listed
from stepfuse.pipeline.prompts import PromptEncoder

Embeddings = Mapping[str, npt.ArrayLike]
Conditioning = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Rows:
    """Conditioning that is checked and yet to be encoded.

    Attributes:
        texts: The prompts; none if embeddings were given.
        count: Rows, one a prompt.
        encode: Makes them: by conditioning input an array (count, *shape of the input). It raises DenoiserError if the
            text encoder fails, and EngineClosed if it is closed.
    """

    texts: Sequence[str]
    count: int
    encode: Callable[[], Conditioning]


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
        return _given(self._checked(f"{name}_embeds", embeds))

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
            return _given({name: np.zeros((1, *spec.shape), dtype=spec.dtype) for name, spec in inputs})
        rows = self.conditional(prompt, embeds, "negative_prompt")
        if rows.count not in (1, count):
            raise ValueError(f"negative_prompt must be one, or one for each of the {count} prompts, got {rows.count}")
        return rows

    def _of_texts(self, texts: Sequence[str], *, negative: bool) -> Rows:
        tokens = self._encoder.tokens(texts, negative=negative)
        return Rows(texts, len(texts), lambda: self._encoder.encode(tokens))

    def _checked(self, name: str, embeds: Embeddings) -> Conditioning:
        inputs, needed = self._model.given_cond, self._encoder.outputs
        if not set(needed) <= set(embeds) <= set(inputs):
            allowed = f"{', '.join(needed)}, and may hold others of {', '.join(inputs)}"
            raise ValueError(f"{name} must hold {allowed}, got {listed(embeds) or 'nothing'}")
        conditioning: Conditioning = {}
        for key, given in embeds.items():
            array, shape = np.asarray(given), inputs[key].shape
            conditioning[key] = array[None] if array.shape == shape else array
            if conditioning[key].shape[1:] != shape or not len(conditioning[key]):
                raise ValueError(f"{key} of {name} must have shape {shape} or (n, *{shape}), got {array.shape}")
        if len({len(array) for array in conditioning.values()} - {1}) > 1:
            lengths = ", ".join(f"{key} {len(array)}" for key, array in conditioning.items())
            raise ValueError(f"{name} must hold as many rows of each input, got {lengths}")
        rows = max(map(len, conditioning.values()))
        return {key: np.repeat(array, rows // len(array), axis=0) for key, array in conditioning.items()}


def _given(conditioning: Conditioning) -> Rows:
    return Rows([], len(next(iter(conditioning.values()))), lambda: conditioning)


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
