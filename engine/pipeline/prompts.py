"""From prompts to the denoiser's conditioning: tokenizers, and the text encoder."""

from __future__ import annotations

import functools
import inspect
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.backends.cuda.config import Cuda
from stepfuse.bundle.bundle import Bundle
from stepfuse.bundle.pipeline_info import TEXT_ENCODER, PromptInput
from stepfuse.errors import BundleError, DenoiserError
from stepfuse.lora.adapters import PLAIN, AdapterSet, Factors
from stepfuse.lora.networks import AdaptedNetworks
from stepfuse.pipeline.stage import Stage
from stepfuse.pipeline.tokenizer import PromptTokenizer

Array = npt.NDArray[Any]
#: An input of the text encoder and its tokenizer.
Reader = tuple[PromptInput, PromptTokenizer]

_SHOWN = 1000  # characters of a prompt in messages
CACHED = 16  # prompts: the embeddings of a long context are megabytes each

logger = logging.getLogger("stepfuse")


class PromptCutWarning(UserWarning):
    """A prompt is longer than the text encoder's context; the message shows what is not read."""


@dataclass(frozen=True)
class Tokens:
    """One prompt as the text encoder takes it.

    Attributes:
        inputs: How it became each input.
        ids: Of each of them, without padding.
    """

    inputs: tuple[PromptInput, ...]
    ids: tuple[tuple[int, ...], ...]

    @property
    def feeds(self) -> dict[str, Array]:
        """The text encoder's inputs, one row of each."""
        found = {}
        for one, ids in zip(self.inputs, self.ids, strict=True):
            padding = one.length - len(ids)
            found[one.input] = np.array([[*ids, *[one.pad_id] * padding]], dtype=np.int64)
            if one.mask is not None:
                found[one.mask] = np.array([[1] * len(ids) + [0] * padding], dtype=np.int64)
        return found


class PromptEncoder:
    """Encodes each prompt by itself, so that its embedding has the same bits beside any other; caches the last ones.

    Calls from any number of threads are safe.

    Args:
        bundle: Of a pipeline with prompts.
        threads: As in ``open_session``.
        adapted: Its graph with inputs for LoRAs; None: it takes none.
        gpu: As in ``Stage``, without ``adapted``.

    Raises:
        BundleError: If a tokenizer cannot be read, or the text encoder's inputs and outputs are not the manifest's.
        ImportError: If ``tokenizers`` is not installed.
    """

    def __init__(
        self, bundle: Bundle, *, threads: int = 0, adapted: AdaptedNetworks | None = None, gpu: Cuda | None = None
    ) -> None:
        assert bundle.pipeline is not None
        prompts, negative = bundle.pipeline.prompts, bundle.pipeline.negative_prompts
        self._readers = _readers(bundle, prompts)
        self._negative_readers = _readers(bundle, negative) if negative else self._readers
        inputs = (name for one in prompts for name in (one.input, one.mask) if name is not None)
        self._shapes = {name: spec.shape for name, spec in bundle.info.cond.items()}
        self._adapters = None if adapted is None else adapted.adapters
        content = None if adapted is None else adapted.take(TEXT_ENCODER)
        all_inputs = *inputs, *self._factors(PLAIN)
        self._stage = Stage(bundle.networks[TEXT_ENCODER], all_inputs, threads=threads, content=content, gpu=gpu)
        if unknown := set(self._stage.outputs) - set(bundle.info.cond):
            raise BundleError(
                f"{bundle.path / TEXT_ENCODER}: outputs must be among the denoiser's conditioning inputs,"
                f" {', '.join(bundle.info.cond) or 'none'}, got {', '.join(sorted(unknown))}"
            )
        self._encode_cached = functools.lru_cache(maxsize=CACHED)(self._encode_tokens)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The conditioning inputs that it feeds."""
        return self._stage.outputs

    def tokens(self, prompts: Sequence[str], *, negative: bool = False) -> list[Tokens]:
        """The tokens of each prompt: all that can be wrong with one, found in a fraction of a millisecond.

        Args:
            prompts: Texts.
            negative: Whether they are negative prompts.

        Raises:
            ValueError: If a prompt has more than ``MAX_CHARACTERS`` characters, or UTF-8 cannot hold it.
            BundleError: If a tokenizer fails.
            EngineClosed: If the encoder is closed.

        Warns:
            PromptCutWarning: If a prompt is longer than the context.
        """
        self._stage.require_open()
        readers = self._negative_readers if negative else self._readers
        return [self._tokens(prompt, readers) for prompt in prompts]

    def unread(self, prompt: str) -> list[str]:
        """What the warnings of ``tokens`` say of a prompt: nothing unless it is cut.

        Raises:
            Exception: As ``tokens`` does.
        """
        self._stage.require_open()
        return _read(prompt, self._readers)[1]

    def encode(self, tokens: Sequence[Tokens], lora: AdapterSet | None = None) -> dict[str, Array]:
        """The conditioning of each prompt, of which these are the tokens, with these LoRAs.

        Returns:
            By conditioning input: shape (n, *shape of the input).

        Raises:
            DenoiserError: If the text encoder fails or returns another shape than the conditioning input's.
            EngineClosed: If the encoder is closed.
        """
        which = PLAIN if lora is None else lora.number
        rows = [self._encode_cached(one, which) for one in tokens]
        return {name: np.stack([row[name] for row in rows]) for name in self.outputs}

    @property
    def seconds(self) -> float:
        """How long the text encoder has run."""
        return self._stage.seconds

    def close(self) -> None:
        """Frees the text encoder."""
        self._stage.close()

    @staticmethod
    def _tokens(prompt: str, readers: Sequence[Reader]) -> Tokens:
        """Token ids for each input, cut to its length; warns of cuts."""
        found, cuts = _read(prompt, readers)
        for text in cuts:
            warnings.warn(text, PromptCutWarning, stacklevel=_caller_stacklevel())
            # Logged too: Python shows a warning once, or not at all.
            logger.info("%s (in %r)", text, prompt[:_SHOWN], extra={"request_id": ""})
        return found

    def _factors(self, which: int) -> Factors:
        return {} if self._adapters is None else self._adapters.factors(which, TEXT_ENCODER)

    def _encode_tokens(self, tokens: Tokens, which: int) -> dict[str, Array]:
        found = self._stage.run({**tokens.feeds, **self._factors(which)})
        for name, array in found.items():
            if array.shape != (1, *self._shapes[name]):
                raise DenoiserError(
                    f"{name} of {TEXT_ENCODER} must have shape {(1, *self._shapes[name])}, as the manifest says, got"
                    f" {array.shape}"
                )
        return {name: array[0] for name, array in found.items()}


def _readers(bundle: Bundle, prompts: Sequence[PromptInput]) -> list[Reader]:
    return [(one, PromptTokenizer(bundle.opened[one.tokenizer], one)) for one in prompts]


def _read(prompt: str, readers: Sequence[Reader]) -> tuple[Tokens, list[str]]:
    """The tokens of a prompt, and a message for each text that is cut off."""
    found, cuts = [], {}
    for one, tokenizer in readers:
        ids, unread = tokenizer.encode(prompt)
        if unread:
            cuts[unread] = one.length
        found.append(ids)
    whose = " by a text encoder of that context" if len(readers) > 1 else ""
    return Tokens(tuple(one for one, _ in readers), tuple(found)), [
        f"a prompt is cut after {length} tokens: {unread[:_SHOWN]!r} is not read{whose}"
        for unread, length in cuts.items()
    ]


def _caller_stacklevel() -> int:
    """The ``stacklevel`` of the first frame outside this package."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("stepfuse."):
        level, frame = level + 1, frame.f_back
    return level - 1
