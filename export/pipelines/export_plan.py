"""What is exported of a pipeline, planned from its configuration files before any weights are loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stepfuse.bundle.cond_input import CondInput
from stepfuse.bundle.model_info import GUIDANCE_INPUT
from stepfuse.bundle.pipeline_info import PipelineInfo
from stepfuse.export.onnx.inputs import Input

if TYPE_CHECKING:
    import torch


DENOISER = "denoiser.onnx"
SAMPLE, TIMESTEP, PREDICTION = "sample", "timestep", "prediction"


@dataclass(frozen=True)
class ExportPart:
    """One graph of the bundle.

    Attributes:
        file: Its name in the bundle.
        components: The components that it is made of, by name, with the classes that each may be of.
        build: Makes the module to export of the loaded components, in their order.
        inputs: The graph's inputs.
        outputs: Names of its outputs.
        sizes: Values to try for each size that ``inputs`` name.
        prefix: Taken off the front of parameters' names.
        float32: Whether it stays float32 in a float16 bundle.
    """

    file: str
    components: Mapping[str, Sequence[str]]
    build: Callable[..., torch.nn.Module]
    inputs: Sequence[Input]
    outputs: Sequence[str]
    sizes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    prefix: str = ""
    float32: bool = False


@dataclass(frozen=True)
class ExportPlan:
    """What is exported of a pipeline.

    Attributes:
        shape: Shape of one sample at the model's own size.
        pipeline: The manifest's entry of the pipeline.
        parts: Its graphs; consecutive parts of the same components share the loaded modules.
        cond: The denoiser's conditioning inputs.
        defaults: Steps and guidance, as the pipeline's own call has them.
        tokenizers: Contents of tokenizer files by name.
        data_range: Least and greatest value of pictures; of latents, the range that they are shown in.
        guidance: As in ``ModelInfo``.
    """

    shape: tuple[int, int, int]
    pipeline: PipelineInfo
    parts: Sequence[ExportPart]
    cond: Mapping[str, CondInput] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    tokenizers: Mapping[str, str] = field(default_factory=dict)
    data_range: tuple[float, float] = (-1.0, 1.0)
    guidance: str = "classifier_free"

    @property
    def is_latent(self) -> bool:
        """Whether samples are a VAE's."""
        return len(self.parts) > 1


def sample_inputs(
    channels: int, multiple: int, trained_steps: int = 1000, *, max_size: int | None = None
) -> list[Input]:
    """The denoiser's first two inputs; height and width are free multiples of ``multiple``, ``max_size`` at most."""
    times = "" if multiple == 1 else f"{multiple}*"
    return [
        Input(SAMPLE, (channels, f"{times}height", f"{times}width"), max_size=max_size),
        Input(TIMESTEP, (), high=trained_steps),
    ]


def guidance_inputs(embedded: bool) -> tuple[list[Input], dict[str, CondInput]]:
    """The denoiser's input that takes the guidance scale, and its entry of ``cond``; none where it is not embedded."""
    if not embedded:
        return [], {}
    return [Input(GUIDANCE_INPUT, (), high=10)], {GUIDANCE_INPUT: CondInput("float32", (), null=1.0)}


def trial_sizes(shape: Sequence[int], multiple: int) -> dict[str, tuple[int, ...]]:
    """Heights and widths to compare at: a small size that is not square, and the model's own."""
    height, width = (max(2, size // multiple) for size in shape[-2:])
    return {"height": (2, height), "width": (3, width)}
