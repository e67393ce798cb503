"""A pipeline's text encoders as one graph, which maps token ids to what ``encode_prompt`` returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepfuse.bundle.pipeline_info import TEXT_ENCODER, PromptInput
from stepfuse.export.onnx.inputs import Input
from stepfuse.export.pipelines.export_plan import ExportPart
from stepfuse.export.pipelines.pipeline_folder import Config, PipelineFolder
from stepfuse.export.pipelines.tokenizer import read_tokenizer
from stepfuse.extras import pip_install

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error

CLIP, CLIP_PROJECTED, T5 = "CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"


@dataclass(frozen=True)
class TextEncoderInfo:
    """A text encoder and its tokenizer.

    Attributes:
        component: The text encoder's name in the pipeline.
        kind: Its class.
        config: How it is built.
        prompt: How a prompt becomes its input.
        tokenizer: Content of the tokenizer's file.
    """

    component: str
    kind: str
    config: Config
    prompt: PromptInput
    tokenizer: str


class TextEncoders(torch.nn.Module):
    """One or more text encoders, under the names that they have in the pipeline."""

    def __init__(self, encoders: Mapping[str, torch.nn.Module]) -> None:
        super().__init__()
        self.names = tuple(encoders)
        for name, encoder in encoders.items():
            self.add_module(name, encoder)

    def encode(self, ids: Sequence[torch.Tensor]) -> list[Any]:
        """Outputs of each encoder, with all hidden states."""
        each = zip(self.names, ids, strict=True)
        return [getattr(self, name)(one, output_hidden_states=True) for name, one in each]


def causal_mask(ids: torch.Tensor) -> torch.Tensor:
    """What is added to attention so that no token reads a later one, shape (1, 1, L, L).

    Prompts are padded behind, so this is all the mask that the tokens before the padding need.

    Args:
        ids: Shape (R, L).
    """
    position = torch.arange(ids.shape[1])
    later = position[None, :] > position[:, None]
    return (later * torch.finfo(torch.float32).min)[None, None]


def read_encoder(
    folder: PipelineFolder,
    number: int,
    allowed: Sequence[str],
    length: int | None = None,
    *,
    tokenizer: Any = None,
    **prompt: Any,
) -> TextEncoderInfo:
    """The pipeline's n-th text encoder with its tokenizer, counted from 1.

    Args:
        folder: The pipeline.
        number: 1, 2 or 3.
        allowed: Classes that it may be of.
        length: Tokens of its context; None asks the tokenizer.
        tokenizer: What ``load_tokenizer`` has returned; None loads it.
        **prompt: Entries of ``PromptInput`` that are not as usual: ``mask``, ``prefix``, ``suffix``, ``lowercase``.

    Raises:
        ExportError: If one is missing or cannot be exported.
    """
    suffix = "" if number == 1 else f"_{number}"
    component = f"text_encoder{suffix}"
    config = folder.text_config(component, allowed)
    if isinstance(of_text := config.get("text_config"), Mapping):  # of a model of pictures and text
        config = Config(config.name, of_text)
    config.require("use_attention_mask", "unset", lambda value: not value)
    template = {key: prompt[key] for key in ("prefix", "suffix") if key in prompt}
    found = read_tokenizer(folder, f"tokenizer{suffix}", length, own=tokenizer, **template)
    config.require("vocab_size", f"at least {found.largest_id + 1}, the tokenizer's", lambda n: n > found.largest_id)
    entry = PromptInput(f"input_ids{suffix}", f"tokenizer{suffix}.json", found.length, found.pad_id, **prompt)
    if (most := config.get("max_position_embeddings")) is not None:
        config.require("max_position_embeddings", f"at least {found.length}", lambda _: most >= found.length)
    return TextEncoderInfo(component, folder.kind(component, allowed), config, entry, found.json)


def require_layers(encoder: TextEncoderInfo, left_out: int) -> None:
    """Refuses to leave out more layers than an encoder has.

    Raises:
        ExportError: If it has fewer.
    """
    rule = f"at least {left_out}, as many as clip_skip leaves out"
    encoder.config.require("num_hidden_layers", rule, lambda value: value >= left_out)


def text_part(
    encoders: Sequence[TextEncoderInfo], kind: Callable[..., TextEncoders], outputs: Sequence[str], **options: Any
) -> ExportPart:
    """The graph of a pipeline's text encoders.

    With another than CLIP it stays float32: transformers, too, keeps part of T5 in float32 (``_keep_in_fp32_modules``)
    and clamps what overflows in the rest, and language models are trained in bfloat16, which has a wider range.
    """
    names = [one.component for one in encoders]

    def build(*modules: torch.nn.Module) -> torch.nn.Module:
        return kind(dict(zip(names, modules, strict=True)), **options)

    inputs = []
    for one in encoders:
        inputs.append(Input(one.prompt.input, (one.prompt.length,), "int64", high=one.config["vocab_size"]))
        if one.prompt.mask is not None:
            inputs.append(Input(one.prompt.mask, (one.prompt.length,), "int64"))
    float32 = not all(one.kind in (CLIP, CLIP_PROJECTED) for one in encoders)
    return ExportPart(
        TEXT_ENCODER, {one.component: (one.kind,) for one in encoders}, build, inputs, outputs, float32=float32
    )
