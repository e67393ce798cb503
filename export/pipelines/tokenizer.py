"""A pipeline's tokenizer as a file of the ``tokenizers`` library that gives the same ids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepfuse.errors import ExportError
from stepfuse.export.pipelines.inversions import textual_inversions, with_inversions
from stepfuse.export.pipelines.pipeline_folder import PipelineFolder
from stepfuse.pipeline.normalizers import MAX_NORMALIZED, normalized_length

_NAMES = ("CLIPTokenizer", "T5Tokenizer", "GemmaTokenizer", "Qwen2Tokenizer")
KINDS = tuple(name + fast for name in _NAMES for fast in ("", "Fast"))

#: Texts that are compared: empty, with capitals, spaces, digits, apostrophes, accents, other scripts, emoji and special
#: tokens, and longer than any context.
TRIALS = (
    "",
    " ",
    "a photo of an astronaut riding a horse on mars",
    "  The QUICK\tbrown\n fox's  1234 jumps; it's (very:1.3) [fast]!? ",
    "Crème brûlée, naïve Zoë, e\u0301 \u2126 ﬁ",
    "一只红色的猫, кошка, قطة",
    "🦊👩‍🚀 <|endoftext|> </s> <unk> !!!",
    "overlong " * 600,
)


# Without one of these sets of files transformers makes a tokenizer with an empty vocabulary.
_VOCABULARIES = ({"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"spiece.model"})


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer.

    Attributes:
        json: Content of its file.
        length: Tokens of its context.
        pad_id: Id of the padding token.
        largest_id: The largest id of its vocabulary.
    """

    json: str
    length: int
    pad_id: int
    largest_id: int


def load_tokenizer(folder: PipelineFolder, name: str) -> Any:
    """A pipeline's tokenizer, by transformers.

    Raises:
        ExportError: If it is missing or cannot be read.
    """
    import transformers

    kind = folder.kind(name, KINDS)
    path = folder.path / name
    files = {file.name for file in path.iterdir()}
    if not any(vocabulary <= files for vocabulary in _VOCABULARIES):
        wanted = ", or ".join(" and ".join(sorted(one, reverse=True)) for one in _VOCABULARIES)
        raise ExportError(f"{path} must hold {wanted}, got {', '.join(sorted(files)) or 'nothing'}")
    try:
        return getattr(transformers, kind).from_pretrained(path, local_files_only=True)
    except Exception as error:  # whatever the tokenizer's own libraries raise
        raise ExportError(f"{path}: {kind} cannot be loaded: {error}") from error


def chat_template(folder: PipelineFolder, name: str, own: Any) -> tuple[str, str]:
    """What the tokenizer's chat template writes before a prompt and after it, up to where an answer begins.

    Args:
        folder: The pipeline.
        name: The tokenizer's component.
        own: What ``load_tokenizer`` has returned.

    Raises:
        ExportError: If there is no template, or one that changes a prompt.
    """

    def written(prompt: str) -> str:
        message = [{"role": "user", "content": prompt}]
        text: str = own.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=True)
        return text

    try:
        prefix, _, suffix = written(TRIALS[2]).partition(TRIALS[2])
        changed = next((text for text in TRIALS if written(text) != prefix + text + suffix), None)
    except ImportError:
        raise
    except Exception as error:  # whatever a template raises
        raise ExportError(f"{folder.path / name}: its chat_template cannot be used: {error}") from error
    if changed is not None:
        raise ExportError(
            f"{folder.path / name}: chat_template must write a prompt as it is, of {changed[:40]!r} it makes"
            f" {written(changed)[:80]!r}"
        )
    return prefix, suffix


def read_tokenizer(
    folder: PipelineFolder,
    name: str,
    length: int | None = None,
    *,
    own: Any = None,
    prefix: str = "",
    suffix: str = "",
) -> TokenizerFile:
    """Converts a tokenizer, and compares ids and attention masks of ``TRIALS``.

    Args:
        folder: The pipeline.
        name: The component.
        length: Tokens of the context; None asks the tokenizer.
        own: What ``load_tokenizer`` has returned; None loads it.
        prefix: Text before each prompt.
        suffix: Text after it.

    Raises:
        ExportError: If it is missing, cannot be read, or the file gives other ids.
    """
    import transformers
    from tokenizers import Tokenizer

    path = folder.path / name
    own = load_tokenizer(folder, name) if own is None else own
    try:
        fast_kind = getattr(transformers, folder.kind(name, KINDS).removesuffix("Fast") + "Fast")
        fast = own if own.is_fast else fast_kind.from_pretrained(path, local_files_only=True)
    except Exception as error:
        raise ExportError(f"{path}: {type(own).__name__} cannot be converted: {error}") from error
    if length is None:
        length = own.model_max_length
        if not isinstance(length, int) or not 0 < length < 1 << 16:
            raise ExportError(f"{path}: model_max_length must be the length of the context, got {length}")
    if own.pad_token_id is None:
        raise ExportError(f"{path}: the tokenizer must have a pad_token, got none")
    tokenizer = Tokenizer.from_str(fast.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    inversions = textual_inversions(own.get_added_vocab())
    text = with_inversions(tokenizer.to_str(), inversions)
    longest = max(map(normalized_length(json.loads(text)["normalizer"]), TRIALS))
    if longest > MAX_NORMALIZED:
        raise ExportError(
            f"{path}: the normalizer must make at most {MAX_NORMALIZED:,} characters of a text, of one of"
            f" {max(map(len, TRIALS)):,} it may make {longest:.3g}"
        )
    found = TokenizerFile(text, length, own.pad_token_id, max(own.get_vocab().values()))
    _compare(path, found, own, inversions, prefix, suffix)
    return found


def _compare(
    path: Any, found: TokenizerFile, own: Any, inversions: Mapping[str, Sequence[str]], prefix: str, suffix: str
) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(found.json)
    tokenizer.enable_truncation(found.length)
    for text in (*TRIALS, *(f"a {token} cat, {token}" for token in inversions)):
        text = prefix + text + suffix
        converted = text
        for token, vectors in inversions.items():  # as diffusers' pipelines write a prompt before they tokenize it
            converted = converted.replace(token, " ".join(vectors))
        expected = own(converted, padding="max_length", max_length=found.length, truncation=True)
        ids = tokenizer.encode(text).ids
        padding = found.length - len(ids)
        mask = [1] * len(ids) + [0] * padding
        ids += [found.pad_id] * padding
        if ids != list(expected["input_ids"]) or mask != list(expected.get("attention_mask", mask)):
            raise ExportError(
                f"{path}: tokenizer.json must give the ids of {type(own).__name__}, of {text[:40]!r} it gives"
                f" {ids[:12]} instead of {list(expected['input_ids'])[:12]}"
            )
