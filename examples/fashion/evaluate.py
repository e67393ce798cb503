"""Judge the embedded model: the share of guided samples that a classifier names as they were asked for.

python evaluate.py                          # 100 samples a class of the embedded model; writes results.json
python evaluate.py --model out/bundle       # of any bundle of this network
"""

from __future__ import annotations

import json
import platform
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from classifier import CLASSIFIER, Classifier, classify, load_classifier, to_model_range
from data import CLASS_NAMES, DATASET, load
from numpy.typing import NDArray
from plot import save_grid

from stepfuse import Engine

RESULTS = Path(__file__).parent / "results.json"


def accuracies(model: Classifier, images: torch.Tensor, labels: NDArray[np.int64]) -> dict[str, float]:
    """Share of images that the classifier names right, by class and under ``overall``."""
    right = classify(model, images) == labels
    by_class = {name: float(right[labels == index].mean()) for index, name in enumerate(CLASS_NAMES)}
    return {"overall": float(right.mean()), **by_class}


def main(
    model: Annotated[str, typer.Option(help="An embedded model's name or a bundle folder.")] = "fashion",
    per_class: Annotated[int, typer.Option(min=1)] = 100,
    steps: Annotated[int, typer.Option(help="Of DDIM.")] = 50,
    guidance_scale: Annotated[float, typer.Option()] = 3.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    classifier: Annotated[Path, typer.Option(help="What classifier.py wrote.")] = CLASSIFIER,
    dataset: Annotated[Path, typer.Option(help="The .npz that data.py wrote.")] = DATASET,
    target: Annotated[Path, typer.Option(help="The JSON to write; a grid of samples goes beside it.")] = RESULTS,
) -> None:
    """Sample, classify, and write the figures."""
    judge = load_classifier(classifier)
    _, test = load(dataset)
    labels = np.repeat(np.arange(len(CLASS_NAMES)), per_class)
    settings: dict[str, Any] = {"sampler": "ddim", "steps": steps, "guidance_scale": guidance_scale, "seed": seed}
    with Engine.load(model) as engine:
        started = time.perf_counter()
        images = engine.sample(len(labels), cond=labels, progress=True, **settings)
        seconds = time.perf_counter() - started
    results = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "samples": len(labels),
        **settings,
        "sampling_seconds": round(seconds, 1),
        "accuracy_of_samples": accuracies(judge, torch.from_numpy(images), labels),
        "accuracy_of_real_test_images": accuracies(judge, to_model_range(test.images), test.labels),
        "versions": {name: version(name) for name in ("stepfuse", "onnxruntime", "torch", "numpy")},
        "python": platform.python_version(),
    }
    target.write_text(json.dumps(results, indent=2) + "\n")
    save_grid(images.reshape(len(CLASS_NAMES), per_class, 28, 28)[:, :12], target.with_suffix(".png"))
    typer.echo(json.dumps(results, indent=2))


if __name__ == "__main__":
    typer.run(main)
