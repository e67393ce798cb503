"""The denoiser's conditioning for a call's pictures, from prompts or from the caller's own embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.bundle.model_info import ModelInfo
from stepfuse.bundle.pipeline_info import PipelineInfo
from stepfuse.display import listed
from stepfuse.pipeline.prompts import PromptEncoder

Embeddings = Mapping[str, npt.ArrayLike]
Conditioning = dict[str, npt.NDArray[Any]]


class PromptConditioning:
    """Encodes prompts, or checks the embeddings given instead of them.

    Args:
        model: The denoiser.
        pipeline: The pipeline around it.
        encoder: Encodes prompts.
    """

    def __init__(self, model: ModelInfo, pipeline: PipelineInfo, encoder: PromptEncoder) -> None:
        self._model = model
        self._pipeline = pipeline
        self._encoder = encoder

    def conditional(
        self, prompt: str | Sequence[str] | None, embeds: Embeddings | None, name: str = "prompt"
    ) -> tuple[list[str], Conditioning]:
        """The conditioning of ``prompt`` or ``embeds``, of which one must be given.

        Returns:
            The prompts, none if embeddings were given, and by conditioning input an array with a row a prompt.

        Raises:
            ValueError: If neither or both are given, there is no prompt, or the embeddings lack an input, have one that
                the denoiser does not, or have another shape or different numbers of rows.
            TypeError: If a prompt is not a text, or ``embeds`` not a mapping.
            DenoiserError: If the text encoder fails.
        """
        if (prompt is None) == (embeds is None):
            raise ValueError(f"give {name} or {name}_embeds, and not both")
        if prompt is not None:
            texts = as_texts(name, prompt)
            return texts, self._encoder.encode(texts)
        if not isinstance(embeds, Mapping):
            raise TypeError(f"{name}_embeds must be a dict by conditioning input, got {type(embeds).__name__}")
        return [], self._checked(f"{name}_embeds", embeds)

    def unconditional(
        self, prompt: str | Sequence[str] | None, embeds: Embeddings | None, count: int
    ) -> tuple[list[str], Conditioning]:
        """The conditioning of the unconditional pass: one row for all of ``count`` prompts, or one a prompt.

        Returns:
            As of ``conditional``; without ``prompt`` and ``embeds`` the empty prompt's, or zeros where the pipeline
            takes those.

        Raises:
            ValueError: As in ``conditional``, and if there are neither one nor ``count`` rows.
            TypeError: As in ``conditional``.
            DenoiserError: If the text encoder fails.
        """
        if prompt is None and embeds is None:
            if not self._pipeline.zeros_without_negative:
                return [], self._encoder.encode([""])
            inputs = ((name, self._model.cond[name]) for name in self._encoder.outputs)
            return [], {name: np.zeros((1, *spec.shape), dtype=spec.dtype) for name, spec in inputs}
        texts, conditioning = self.conditional(prompt, embeds, "negative_prompt")
        for rows in conditioning.values():
            if len(rows) not in (1, count):
                raise ValueError(
                    f"negative_prompt must be one, or one for each of the {count} prompts, got {len(rows)}"
                )
        return texts, conditioning

    def _checked(self, name: str, embeds: Embeddings) -> Conditioning:
        inputs, needed = self._model.cond, self._encoder.outputs
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
    if len(rows) not in (1, count, n):
        raise ValueError(f"{name} must be one, or one for each of {count} prompts or {n} pictures, got {len(rows)}")
    return np.repeat(rows, n // len(rows), axis=0)
