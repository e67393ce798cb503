"""A tokenizer of a bundle: a prompt's token ids, within bounds of memory and time that hold for any file."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from stepfuse.bundle.open_file import OpenFile
from stepfuse.bundle.pipeline_info import PromptInput
from stepfuse.errors import BundleError
from stepfuse.files.strict_json import parse_json

#: Most bytes of a tokenizer's file: the largest vocabularies take half of it.
MAX_BYTES = 64 << 20
#: Most characters of a prompt, a thousand tokens of ten contexts: no encoder reads as much, and the time is linear.
MAX_CHARACTERS = 1 << 14
#: Most characters of a prompt as the file's normalizer writes it: each of a chain of them may double it.
MAX_NORMALIZED = 1 << 20
MAX_LENGTH = 1 << 16  # tokens of a context

#: Most characters that a normalizer makes of one: decompositions of Unicode (its stability policy bounds them), lower
#: case, spaces around ideographs, a letter a byte.
_GROWTH = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 3, "BertNormalizer": 12, "ByteLevel": 4}

Lengths = Callable[[int], float]


class PromptTokenizer:
    """Token ids of prompts.

    Args:
        file: A file of the tokenizers library, as it was checked.
        prompt: What the text encoder takes.

    Raises:
        BundleError: If the file is larger than ``MAX_BYTES`` or no tokenizer, or the context is longer than
            ``MAX_LENGTH``.
        ImportError: If ``tokenizers`` is not installed.
    """

    def __init__(self, file: OpenFile, prompt: PromptInput) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ImportError("prompts need tokenizers: pip install 'stepfuse[text]'") from error
        if prompt.length > MAX_LENGTH:
            raise BundleError(f"{file.path}: a context must have at most {MAX_LENGTH} tokens, got {prompt.length}")
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
        """The ids, cut and padded to the context's length, and what of the prompt is not read.

        Raises:
            ValueError: If the prompt has more than ``MAX_CHARACTERS``, or a lone surrogate, which UTF-8 cannot hold.
            BundleError: If the tokenizer fails, may make too long a text of the prompt, or gives too many ids.
        """
        require_prompt(prompt)
        if (longest := self._normalized_length(len(prompt))) > MAX_NORMALIZED:
            raise BundleError(
                f"{self._path}: its normalizer must make at most {MAX_NORMALIZED:,} characters of a prompt, of"
                f" {len(prompt)} it may make {longest:.3g}"
            )
        encoded, unread = self._guarded("cannot encode a prompt", lambda: self._encode(prompt))
        if len(encoded) > self._prompt.length:
            raise BundleError(f"{self._path} must give at most {self._prompt.length} ids, got {len(encoded)}")
        return (*encoded, *[self._prompt.pad_id] * (self._prompt.length - len(encoded))), unread

    def _encode(self, prompt: str) -> tuple[list[int], str]:
        encoded = self._tokenizer.encode(prompt)
        return encoded.ids, _unread(prompt, encoded.overflowing[0]) if encoded.overflowing else ""

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


def normalized_length(normalizer: Any) -> Lengths:
    """A bound on the characters that a tokenizer's normalizer makes of so many.

    Args:
        normalizer: The entry of its file, None for none.
    """
    steps = [_step(one) for one in _flat(normalizer)]

    def bound(length: int) -> float:
        found = float(length)
        for step in steps:
            found = min(step(found), math.inf)
        return found

    return bound


def _flat(normalizer: Any) -> list[Mapping[str, Any]]:
    """The normalizers in their order, sequences dissolved."""
    if not normalizer:
        return []
    if normalizer.get("type") == "Sequence":
        return [one for part in normalizer["normalizers"] for one in _flat(part)]
    return [normalizer]


def _step(normalizer: Mapping[str, Any]) -> Callable[[float], float]:
    kind = normalizer.get("type")
    if kind == "Prepend":
        return lambda length: length + len(normalizer["prepend"])
    if kind == "Replace":
        pattern, content = normalizer["pattern"], len(normalizer["content"])
        least = _least_width(pattern["Regex"]) if "Regex" in pattern else len(pattern["String"])
        if least == 0:
            return lambda length: length + (length + 1) * content
        return lambda length: length * max(1.0, content / least)
    growth = _longest_entry(normalizer) if kind == "Precompiled" else _GROWTH.get(str(kind), 1)
    return lambda length: length * growth


def _least_width(pattern: str) -> int:
    """Characters that a match has at least; 0 where Python reads the expression differently or not at all."""
    if re.search(r"\[[^\]]*\[", pattern):  # a class in a class, which Python does not have
        return 0
    parser: Any = getattr(re, "_parser", None) or re.sre_parse  # type: ignore[attr-defined]
    try:
        return int(parser.parse(pattern).getwidth()[0])
    except Exception:  # of the library's own syntax
        return 0


def _longest_entry(normalizer: Mapping[str, Any]) -> int:
    """The longest text that SentencePiece's compiled map puts in the place of a character.

    The map is the size of its trie, the trie, and the texts, each ended by a zero.
    """
    data = base64.b64decode(normalizer["precompiled_charsmap"] or "")
    texts = data[4 + int.from_bytes(data[:4], "little") :]
    return max([len(one) for one in texts.split(b"\0")], default=1) or 1


def _unread(prompt: str, overflow: Any) -> str:
    """The rest of the prompt, from the first token beyond the context."""
    inside = zip(overflow.offsets, overflow.special_tokens_mask, strict=True)
    start = next((offsets[0] for offsets, special in inside if not special), len(prompt))
    return prompt[start:].strip()
