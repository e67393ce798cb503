"""A tokenizer of a bundle: a prompt's token ids, within bounds of memory and time that hold for any file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stepfuse.bundle.open_file import OpenFile
from stepfuse.bundle.pipeline_info import PromptInput
from stepfuse.errors import BundleError
from stepfuse.extras import pip_install
from stepfuse.files.strict_json import parse_json
from stepfuse.pipeline.normalizers import MAX_NORMALIZED, normalized_length

#: Most bytes of a tokenizer's file: the largest vocabularies take half of it.
MAX_BYTES = 64 << 20
#: Most characters of a prompt: text encoders read 77 to 512 tokens, and the time to tokenize is linear in the prompt.
MAX_CHARACTERS = 1 << 14


class PromptTokenizer:
    """Token ids of prompts.

    Args:
        file: A file of the tokenizers library, as it was checked.
        prompt: What the text encoder takes.

    Raises:
        BundleError: If the file is larger than ``MAX_BYTES`` or no tokenizer.
        ImportError: If ``tokenizers`` is not installed.
    """

    def __init__(self, file: OpenFile, prompt: PromptInput) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ImportError(f"prompts need tokenizers: {pip_install('text')}") from error
        if file.size > MAX_BYTES:
            raise BundleError(f"{file.path} must have at most {MAX_BYTES:,} bytes, got {file.size:,}")
        self._path, self._prompt = file.path, prompt

        def load() -> Any:
            content = file.read()
            described = parse_json(content)
            tokenizer = Tokenizer.from_str(content.decode("utf-8"))
            tokenizer.no_padding()
            tokenizer.enable_truncation(prompt.length)
            return tokenizer, normalized_length(described.get("normalizer"))

        self._tokenizer, self._normalized_length = self._guarded("is no file of the tokenizers library", load)

    def encode(self, prompt: str) -> tuple[tuple[int, ...], str]:
        """The ids, cut to the context's length, and what of the prompt is not read.

        Raises:
            ValueError: If the prompt has more than ``MAX_CHARACTERS``, or a lone surrogate, which UTF-8 cannot hold.
            BundleError: If the tokenizer fails, may make too long a text of the prompt, or gives too many ids.
        """
        require_prompt(prompt)
        text = self._prompt.text(prompt)
        if (longest := self._normalized_length(text)) > MAX_NORMALIZED:
            raise BundleError(
                f"{self._path}: its normalizer must make at most {MAX_NORMALIZED:,} characters of a prompt, of"
                f" {len(prompt)} it may make {longest:.3g}"
            )
        encoded, unread = self._guarded("cannot encode a prompt", lambda: self._encode(text))
        if len(encoded) > self._prompt.length:
            raise BundleError(f"{self._path} must give at most {self._prompt.length} ids, got {len(encoded)}")
        return tuple(encoded), unread

    def _encode(self, text: str) -> tuple[list[int], str]:
        encoded = self._tokenizer.encode(text)
        if not encoded.overflowing:
            return encoded.ids, ""
        end = len(text) - len(self._prompt.suffix)
        return encoded.ids, text[_first_unread(text, encoded.overflowing[0]) : end].strip()

    def _guarded(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except BaseException as error:
            # The library raises Exception itself, and a panic of its Rust is no Exception.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise BundleError(f"{self._path} {what}: {error}") from error


def require_prompt(prompt: str) -> None:
    """Checks a prompt before anything is made of it.

    Raises:
        ValueError: If it has more than ``MAX_CHARACTERS``, or UTF-8 cannot hold it.
    """
    if len(prompt) > MAX_CHARACTERS:
        raise ValueError(f"a prompt must have at most {MAX_CHARACTERS:,} characters, got {len(prompt):,}")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"a prompt must be text that UTF-8 can hold, got {prompt[error.start]!r} in it") from error


def _first_unread(text: str, overflow: Any) -> int:
    """Where the first token beyond the context begins in the text."""
    inside = zip(overflow.offsets, overflow.special_tokens_mask, strict=True)
    return next((offsets[0] for offsets, special in inside if not special), len(text))
