"""A tokenizer of a bundle: a prompt's token ids, within bounds of memory and time that hold for any file."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepfuse.bundle.pipeline_info import PromptInput
from stepfuse.errors import BundleError

#: Most characters of a prompt, a thousand tokens of ten contexts: no encoder reads as much, and the time is linear.
MAX_CHARACTERS = 1 << 14
#: Most characters of a prompt as the file's normalizer writes it: each of a chain of them may double it.
MAX_NORMALIZED = 1 << 20
MAX_NORMALIZERS = 1000
MAX_LENGTH = 1 << 16  # tokens of a context

#: Most characters that a normalizer makes of one: decompositions of Unicode (its stability policy bounds them), lower
#: case, spaces around ideographs, a letter a byte.
_GROWTH = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 3, "BertNormalizer": 12, "ByteLevel": 4}

#: An expression for one text alone, or one that no number follows, as exports write for textual inversions.
_LITERAL = re.compile(r"(?:\\[^A-Za-z0-9]|[^\\^$.|?*+()\[\]{}])+(?:\(\?!_\\d\))?")


class PromptTokenizer:
    """Token ids of prompts.

    Args:
        path: A file of the tokenizers library.
        prompt: What the text encoder takes.

    Raises:
        BundleError: If the file cannot be read, or the context is longer than ``MAX_LENGTH``.
        ImportError: If ``tokenizers`` is not installed.
    """

    def __init__(self, path: Path, prompt: PromptInput) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ImportError("prompts need tokenizers: pip install 'stepfuse[text]'") from error
        if prompt.length > MAX_LENGTH:
            raise BundleError(f"{path}: a context must have at most {MAX_LENGTH} tokens, got {prompt.length}")
        self._path, self._prompt = path, prompt

        def load() -> Any:
            text = path.read_text(encoding="utf-8")
            tokenizer = Tokenizer.from_str(text)
            tokenizer.no_padding()
            tokenizer.enable_truncation(prompt.length)
            return tokenizer, normalized_length(json.loads(text).get("normalizer"))

        self._tokenizer, self._normalized_length = self._guarded("is no file of the tokenizers library", load)

    def encode(self, prompt: str) -> tuple[tuple[int, ...], str]:
        """The ids, cut and padded to the context's length, and what of the prompt is not read.

        Raises:
            ValueError: If the prompt has more than ``MAX_CHARACTERS``, or a lone surrogate, which UTF-8 cannot hold.
            BundleError: If the tokenizer fails, may make too long a text of the prompt, or gives too many ids.
        """
        require_prompt(prompt)
        if (longest := self._normalized_length(prompt)) > MAX_NORMALIZED:
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


def normalized_length(normalizer: Any) -> Callable[[str], float]:
    """A bound on the characters that a tokenizer's normalizer makes of a text.

    Literal replacements, such as those of textual inversions, are made here too, as long as nothing else comes before
    them: they are often many, and most find nothing. What is behind others is bounded by what it may do to any text.

    Args:
        normalizer: The entry of its file, None for none.

    Returns:
        From a text to the bound; beyond ``MAX_NORMALIZED`` it is no longer exact.

    Raises:
        ValueError: If there are more than ``MAX_NORMALIZERS``.
    """
    steps = [_step(one) for one in _flat(normalizer)]
    if len(steps) > MAX_NORMALIZERS:
        raise ValueError(f"it must have at most {MAX_NORMALIZERS} normalizers, got {len(steps)}")

    def bound(text: str) -> float:
        known: str | None = text
        length = float(len(text))
        for step in steps:
            if known is None or step.literal is None:
                known, length = None, step.bound(length)
                continue
            length = len(known) + len(step.literal.findall(known)) * float(len(step.content))
            if length > MAX_NORMALIZED:
                known = None
            else:
                known = step.content.join(step.literal.split(known))
                length = len(known)
        return length

    return bound


@dataclass(frozen=True)
class _Step:
    """One normalizer.

    Attributes:
        bound: Most characters of its result, by those of the text.
        literal: What it replaces, if that is a literal text.
        content: What by.
    """

    bound: Callable[[float], float]
    literal: re.Pattern[str] | None = None
    content: str = ""


def _flat(normalizer: Any) -> list[Mapping[str, Any]]:
    """The normalizers in their order, sequences dissolved."""
    if not normalizer:
        return []
    if normalizer.get("type") == "Sequence":
        return [one for part in normalizer["normalizers"] for one in _flat(part)]
    return [normalizer]


def _step(normalizer: Mapping[str, Any]) -> _Step:
    kind = normalizer.get("type")
    if kind == "Prepend":
        added = len(normalizer["prepend"])
        return _Step(lambda length: length + added)
    if kind != "Replace":
        growth = _longest_entry(normalizer) if kind == "Precompiled" else _GROWTH.get(str(kind), 1)
        return _Step(lambda length: length * growth)
    content: str = normalizer["content"]
    pattern: str = normalizer["pattern"].get("Regex") or re.escape(normalizer["pattern"].get("String", ""))
    least = _least_width(pattern)
    if least == 0:
        return _Step(lambda length: length + (length + 1) * len(content))
    literal = re.compile(pattern) if _LITERAL.fullmatch(pattern) else None
    return _Step(lambda length: length * max(1.0, len(content) / least), literal, content)


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
    return max([len(one.decode(errors="replace")) for one in texts.split(b"\0")], default=1) or 1


def _unread(prompt: str, overflow: Any) -> str:
    """The rest of the prompt, from the first token beyond the context."""
    inside = zip(overflow.offsets, overflow.special_tokens_mask, strict=True)
    start = next((offsets[0] for offsets, special in inside if not special), len(prompt))
    return prompt[start:].strip()
