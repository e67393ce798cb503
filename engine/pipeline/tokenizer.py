"""Opening a bundle's tokenizers, which come from whoever made the bundle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stepfuse.bundle.bundle import Bundle
from stepfuse.bundle.pipeline_info import PromptInput
from stepfuse.errors import BundleError
from stepfuse.files.strict_json import parse_json

MOST_BYTES = 64 << 20  # of a tokenizer's file; the largest vocabularies take half of it
MOST_GROWTH = 64  # characters that replacements may make of one


def open_tokenizer(bundle: Bundle, prompt: PromptInput) -> Any:
    """A tokenizer of the bundle that cuts prompts to their context, and pads none.

    Raises:
        BundleError: If its file is larger than 64 MiB, is none of the ``tokenizers`` library, has replacements that
            together make more than 64 characters of one, or does not cut prompts to their context.
        ImportError: If ``tokenizers`` is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError("prompts need tokenizers: pip install 'stepfuse[text]'") from error
    file = bundle.opened[prompt.tokenizer]
    if file.size > MOST_BYTES:
        raise BundleError(f"{file.path} must have at most {MOST_BYTES} bytes, got {file.size}")
    content = file.read()
    try:
        growth = _growth(parse_json(content))
        if growth > MOST_GROWTH:
            raise ValueError(f"its replacements may make at most {MOST_GROWTH} characters of one, got {growth}")
        tokenizer = Tokenizer.from_str(content.decode("utf-8"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(prompt.length)
        if (tokens := len(tokenizer.encode("a " * prompt.length).ids)) > prompt.length:
            raise ValueError(f"it must cut prompts to {prompt.length} tokens, got {tokens}")
    except BaseException as error:
        if not _is_of_library(error):
            raise
        raise BundleError(f"{file.path} is no file of the tokenizers library: {error}") from error
    return tokenizer


def _is_of_library(error: BaseException) -> bool:
    """Whether an error is about the file: the library raises Exception itself, and a panic is a BaseException."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _growth(content: Any) -> int:
    """Characters that the normaliser's replacements may make of one, all of them one after the other."""
    growth = 1
    for one in _normalizers(content.get("normalizer") if isinstance(content, dict) else None):
        added = one.get("content", one.get("prepend"))
        if not isinstance(added, str):
            continue
        pattern = one.get("pattern")
        literal = pattern.get("String") if isinstance(pattern, dict) else None
        if isinstance(literal, str) and literal:
            growth *= max(1, -(-len(added) // len(literal)))
        else:  # an expression may match between any two characters
            growth *= 1 + len(added)
        if growth > MOST_GROWTH:
            break
    return growth


def _normalizers(normalizer: Any) -> Iterator[dict[str, Any]]:
    if isinstance(normalizer, dict):
        inner = normalizer.get("normalizers")
        if isinstance(inner, list):
            for one in inner:
                yield from _normalizers(one)
        else:
            yield normalizer
