"""Adapts a noise-prediction module to the inputs of a bundle's network, and checks that it takes and returns them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from stepfuse.errors import ExportError
from stepfuse.export.onnx.inputs import Input
from stepfuse.export.onnx.translation import evaluating
from stepfuse.extras import pip_install

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error

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
        ExportError: If a parameter is not float32 on the CPU; or the module does not take ``inputs``, changes them or
            its buffers (which are restored),
            does not return a finite float32 tensor of the sample's shape, returns something else for the same inputs,
            or predicts a row differently beside others.
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
    with evaluating(denoiser), _buffers_kept(module, kind):
        try:
            found, again = denoiser(*feed), denoiser(*feed)
            alone, turned = denoiser(*(one[:1] for one in feed)), denoiser(*(one.flip(0) for one in feed))
        except Exception as error:
            shapes = ", ".join(f"{one.name} {tuple(given.shape)}" for one, given in zip(inputs, feed, strict=True))
            raise ExportError(f"{kind} must take {shapes}: {type(error).__name__}: {error}") from error
    if not all(torch.equal(given, copy) for given, copy in zip(feed, before, strict=True)):
        raise ExportError(f"{kind} must not change its inputs: make that operation one that returns a new tensor")
    for prediction, sample in ((found, feed[0]), (again, feed[0]), (alone, feed[0][:1]), (turned, feed[0])):
        _check_prediction(kind, prediction, sample)
    near = 1e-3 * float(found.abs().max())
    if not torch.allclose(found, again, rtol=0, atol=near):
        raise ExportError(
            f"{kind} must return the same for the same inputs: it is random in evaluation mode, or keeps state between"
            " calls, which a graph does not"
        )
    beside = torch.cat([alone, turned.flip(0)])  # in other places, too: a row may reach those behind it alone
    if not torch.allclose(torch.cat([found[:1], found]), beside, rtol=0, atol=near):
        raise ExportError(
            f"{kind} must give a row the same prediction whatever rows are beside it: unrelated requests share a batch"
        )


@contextmanager
def _buffers_kept(module: torch.nn.Module, kind: str) -> Iterator[None]:
    """Refuses calls that change a buffer, and restores it: a graph keeps no state between calls."""
    before = {name: (buffer, buffer._version, buffer.clone()) for name, buffer in module.named_buffers()}
    try:
        yield
    finally:
        changed = [name for name, (buffer, number, _) in before.items() if buffer._version != number]
        with torch.no_grad():
            for name in changed:
                buffer, _, copy = before[name]
                buffer.copy_(copy)
    if changed:
        raise ExportError(f"{kind} must not change its buffers, got {', '.join(changed)}: a graph keeps no state")


def _check_names(module: torch.nn.Module, cond: Sequence[str], kind: str) -> None:
    try:
        inspect.signature(module.forward).bind(None, None, **dict.fromkeys(cond))
    except TypeError as error:
        keywords = "".join(f", {name}={name}" for name in cond)
        raise ExportError(f"{kind} must be callable as module(x, t{keywords}): {error}") from error


def _check_prediction(kind: str, found: Any, sample: torch.Tensor) -> None:
    if not isinstance(found, torch.Tensor):
        raise ExportError(
            f"{kind} must return a tensor, or an object with one as .sample, got {type(found).__name__}:"
            " wrap it in a module that returns the prediction"
        )
    if found.shape != sample.shape:
        learned = found.ndim > 1 and found.shape[1] == 2 * sample.shape[1] and found.shape[2:] == sample.shape[2:]
        hint = ": its second half is a learned variance: wrap it to return the first C channels" if learned else ""
        raise ExportError(f"{kind} must return the shape of x, {tuple(sample.shape)}, got {tuple(found.shape)}{hint}")
    if found.dtype != torch.float32:
        raise ExportError(f"{kind} must return float32, got {found.dtype}")
    if not bool(found.isfinite().all()):
        bad = int((~found.isfinite()).sum())
        raise ExportError(f"{kind} must return finite numbers, got {bad} of {found.numel()} that are not, in torch")
