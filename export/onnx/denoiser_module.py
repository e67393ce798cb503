"""Adapts a noise-prediction module to the inputs of a bundle's network, and checks that it takes and returns them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import numpy as np

from stepfuse.errors import ExportError
from stepfuse.export.onnx.inputs import Input
from stepfuse.export.onnx.translation import evaluating

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): pip install 'stepfuse[export]'") from error

SAMPLE, TIMESTEP, PREDICTION = "sample", "timestep", "prediction"


class DenoiserModule(torch.nn.Module):
    """A module that is called with positional inputs, the conditioning inputs among them, as an ONNX graph is."""

    def __init__(self, module: torch.nn.Module, cond: tuple[str, ...]) -> None:
        super().__init__()
        self.module = module
        self.cond = cond
        self.training = False

    def _get_name(self) -> str:
        return type(self.module).__name__  # messages are about that one

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Sample and timestep, then the conditioning inputs in the order of ``cond``; returns the prediction."""
        sample, timestep, *conditioning = inputs
        found = self.module(sample, timestep, **dict(zip(self.cond, conditioning, strict=True)))
        return getattr(found, "sample", found) if not isinstance(found, torch.Tensor) else found


def check_module(denoiser: DenoiserModule, inputs: Sequence[Input], sizes: Mapping[str, int]) -> None:
    """Checks the module in torch alone, where errors are plainer than those of a translated graph.

    Raises:
        ExportError: If a parameter is not float32 on the CPU; or the module does not take ``inputs``, changes them,
            does not return a finite float32 tensor of the sample's shape, or predicts a row differently beside others.
    """
    module, kind = denoiser.module, type(denoiser.module).__name__
    for name, parameter in module.named_parameters():
        if parameter.device.type != "cpu" or parameter.dtype not in (torch.float32, torch.bool, torch.int64):
            raise ExportError(
                f"{kind} must be float32 on the CPU, got {parameter.dtype} on {parameter.device} for {name}:"
                " pass module.float().cpu(), and precision='float16' for a float16 bundle"
            )
    rng = np.random.default_rng(0)
    feed = [torch.from_numpy(one.example(2, sizes, rng)) for one in inputs]
    before = [given.clone() for given in feed]
    _check_names(module, denoiser.cond, kind)
    with evaluating(denoiser):
        try:
            found, alone = denoiser(*feed), denoiser(*(one[:1] for one in feed))
        except Exception as error:
            shapes = ", ".join(f"{one.name} {tuple(given.shape)}" for one, given in zip(inputs, feed, strict=True))
            raise ExportError(f"{kind} must take {shapes}: {type(error).__name__}: {error}") from error
    if not all(torch.equal(given, again) for given, again in zip(feed, before, strict=True)):
        raise ExportError(f"{kind} must not change its inputs: make that operation one that returns a new tensor")
    if not isinstance(found, torch.Tensor):
        raise ExportError(
            f"{kind} must return a tensor, or an object with one as .sample, got {type(found).__name__}:"
            " wrap it in a module that returns the prediction"
        )
    _check_prediction(kind, found, feed[0])
    if not torch.allclose(found[:1], alone, rtol=0, atol=1e-3 * float(found.abs().max())):
        raise ExportError(
            f"{kind} must give a row the same prediction whatever rows are beside it: unrelated requests share a batch"
        )


def _check_names(module: torch.nn.Module, cond: Sequence[str], kind: str) -> None:
    try:
        inspect.signature(module.forward).bind(None, None, **dict.fromkeys(cond))
    except TypeError as error:
        keywords = "".join(f", {name}={name}" for name in cond)
        raise ExportError(f"{kind} must be callable as module(x, t{keywords}): {error}") from error


def _check_prediction(kind: str, found: torch.Tensor, sample: torch.Tensor) -> None:
    if found.shape != sample.shape:
        learned = found.ndim > 1 and found.shape[1] == 2 * sample.shape[1] and found.shape[2:] == sample.shape[2:]
        hint = ": its second half is a learned variance: wrap it to return the first C channels" if learned else ""
        raise ExportError(f"{kind} must return the shape of x, {tuple(sample.shape)}, got {tuple(found.shape)}{hint}")
    if found.dtype != torch.float32:
        raise ExportError(f"{kind} must return float32, got {found.dtype}")
    if not bool(found.isfinite().all()):
        bad = int((~found.isfinite()).sum())
        raise ExportError(f"{kind} must return finite numbers, got {bad} of {found.numel()} that are not, in torch")
