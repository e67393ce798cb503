"""The state of a training run: what a checkpoint holds, and where a run can start from."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import torch
from model import Denoiser
from onnx import numpy_helper
from plot import plot_losses

EMA_DECAY = 0.9995
COLUMNS = ("step", "seconds", "learning_rate", "loss", "grad_norm")


@dataclass
class Run:
    """A training run; ``seconds`` is its training time over all its starts, ``log`` one row of means per 50 steps."""

    model: Denoiser
    ema: Denoiser
    optimizer: torch.optim.AdamW
    step: int = 0
    seconds: float = 0.0
    log: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def fresh(cls, device: torch.device, seed: int, weights: Path | None) -> Run:
        """Start a run at step 0 with random weights, or with those of the bundle at ``weights``."""
        torch.manual_seed(seed)
        model, ema = Denoiser().to(device), Denoiser().to(device)
        if weights is not None:
            load_bundle_weights(model, weights)
        ema.load_state_dict(model.state_dict())
        for net in (model, ema):
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), fused=True)
        return cls(model, ema.requires_grad_(False), optimizer)

    def save(self, path: Path) -> None:
        """Write the checkpoint atomically, and ``loss.csv`` and ``loss.png`` beside it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "log": self.log,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        unfinished = path.with_suffix(".tmp")
        torch.save(state, unfinished)
        unfinished.replace(path)
        with (path.parent / "loss.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows({name: f"{row[name]:.6g}" for name in COLUMNS} for row in self.log)
        plot_losses(self.log, path.parent / "loss.png")

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint that ``save`` wrote."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]

    def update_ema(self) -> None:
        """Move the averaged weights towards the current ones, faster while the run is young."""
        weight = 1.0 - min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), weight)


def load_bundle_weights(model: Denoiser, bundle: Path) -> None:
    """Copy the initialisers of ``bundle/denoiser.onnx``, which carry the parameters' names, into ``model``.

    Raises:
        ValueError: If a parameter is not in the graph.
    """
    graph = onnx.load(bundle / "denoiser.onnx").graph
    arrays = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    names = {name for name, _ in model.named_parameters()}
    if missing := names - arrays.keys():
        raise ValueError(f"{bundle / 'denoiser.onnx'} must hold every parameter of the model, lacks {sorted(missing)}")
    model.load_state_dict({name: arrays[name] for name in names}, strict=False)
