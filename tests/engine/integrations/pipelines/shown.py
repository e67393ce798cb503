"""What is compared: a pipeline of tiny random components, as it is and compiled, from the same generator."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import diffusers
import numpy as np
import torch

SIZE = 16  # pixels
PROMPTS = {"prompt": ["a red cat in the rain", "blue dog"]}
IMAGES = np.random.default_rng(0).random((2, SIZE, SIZE, 3), dtype=np.float32)
MASKS = np.repeat(np.arange(SIZE)[None, None, :, None] < SIZE // 2, SIZE, axis=1).repeat(2, axis=0).astype(np.float32)


@dataclass(frozen=True)
class Shown:
    """A class of pipelines and one way to call it.

    Attributes:
        name: Class of diffusers.
        parts: Makes its components; a family's are made once.
        given: Arguments of the call.
        prepare: What is done with the pipeline first.
        label: What the documentation calls it; empty: the class.
        way: ``loop`` if the engine runs the loop, ``steps`` if the pipeline does, with the fused step in it, and
            ``diffusers`` if the scheduler's step is diffusers' own.
        module: Where the class is.
    """

    name: str
    parts: Callable[[], Mapping[str, Any]]
    given: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Any], None] | None = None
    label: str = ""
    way: str = "steps"
    module: str = "diffusers"

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.name)

    def pipeline(self) -> Any:
        """A pipeline of diffusers, ready to be called."""
        pipe = getattr(import_module(self.module), self.name)(**self.parts())
        pipe.set_progress_bar_config(disable=True)
        if self.prepare is not None:
            self.prepare(pipe)
        return pipe

    def call(self, pipe: Any, *, as_numpy: bool = True, **given: Any) -> Any:
        """What a call returns first: pictures, latents, frames or waveforms."""
        torch.manual_seed(5)
        options = {"num_inference_steps": 4, "generator": torch.Generator().manual_seed(3), **self.given, **given}
        first = pipe(**options, return_dict=False)[0]
        return np.asarray(first) if as_numpy else first


def tensor(*shape: int, seed: int = 1) -> torch.Tensor:
    """Standard normal numbers: embeddings of a prompt, weights of an adapter."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scheduler(name: str, **config: Any) -> Any:
    """A scheduler of diffusers."""
    return getattr(diffusers, name)(**config)


def network(name: str, **config: Any) -> Any:
    """A network of diffusers with random weights, none of which is 0, as those of new residual connections are."""
    torch.manual_seed(0)
    module = getattr(diffusers, name)(**config)
    return filled(module)


def filled(module: Any) -> Any:
    """The module with other weights in place of those that are 0 or not set, so that every part has an effect."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.isfinite().all() or not parameter.any() or parameter.abs().max() > 1e3:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()
