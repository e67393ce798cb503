"""Judge the embedded model: how many guided samples are named as asked for, and how far they are from real images.

python evaluate.py                          # 100 samples a class of the embedded model; writes results.json
python evaluate.py --model out/bundle       # of any bundle of this network
python evaluate.py --sampler ddpm --steps 1000 --target results-ddpm.json    # half an hour
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
import typer
from data import CLASS_NAMES, DATASET, Split, load
from numpy.typing import NDArray
from plot import save_grid

from stepfuse import Engine
from stepfuse.analysis import Judge
from stepfuse.analysis.measures.judge_network import to_model_range

RESULTS = Path(__file__).parent / "results.json"


def accuracies(judge: Judge, images: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """Share of images that the judge names right, by class and under ``overall``."""
    right = judge.classify(images) == labels
    by_class = {name: float(right[labels == index].mean()) for index, name in enumerate(CLASS_NAMES)}
    return {"overall": float(right.mean()), **by_class}


def as_many_real(train: Split, per_class: int, seed: int) -> NDArray[np.float32]:
    """Draw real training images, ``per_class`` a class: what the distance of so many perfect samples would be.

    A little more than that, as the judge knows them from its own training.
    """
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(train.labels == index))[:per_class] for index in range(len(CLASS_NAMES))]
    return to_model_range(train.images[np.concatenate(chosen)])


def main(
    model: Annotated[str, typer.Option(help="An embedded model's name or a bundle folder.")] = "fashion",
    per_class: Annotated[int, typer.Option(min=7, help="The distance needs more images than features.")] = 100,
    sampler: Annotated[str, typer.Option()] = "ddim",
    steps: Annotated[int, typer.Option()] = 50,
    guidance_scale: Annotated[float, typer.Option()] = 3.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    judge: Annotated[str, typer.Option(help="A judge's name or a folder that classifier.py wrote.")] = "fashion",
    dataset: Annotated[Path, typer.Option(help="The .npz that data.py wrote.")] = DATASET,
    target: Annotated[Path, typer.Option(help="The JSON to write; a grid of samples goes beside it.")] = RESULTS,
) -> None:
    """Sample, classify, and write the figures."""
    critic = Judge.load(judge)
    train, test = load(dataset)
    labels = np.repeat(np.arange(len(CLASS_NAMES)), per_class)
    settings: dict[str, Any] = {"sampler": sampler, "steps": steps, "guidance_scale": guidance_scale, "seed": seed}
    with Engine.load(model) as engine:
        started = time.perf_counter()
        images = engine.sample(len(labels), cond=labels, progress=True, **settings)
        seconds = time.perf_counter() - started
    results = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "samples": len(labels),
        **settings,
        "sampling_seconds": round(seconds, 1),
        "accuracy_of_samples": accuracies(critic, images, labels),
        "accuracy_of_real_test_images": accuracies(critic, to_model_range(test.images), test.labels),
        "frechet_distance_of_samples": critic.distance(images),
        "frechet_distance_of_as_many_real_training_images": critic.distance(as_many_real(train, per_class, seed)),
        "versions": {name: version(name) for name in ("stepfuse", "onnxruntime", "numpy")},
        "python": platform.python_version(),
    }
    target.write_text(json.dumps(results, indent=2) + "\n")
    save_grid(images.reshape(len(CLASS_NAMES), per_class, 28, 28)[:, :12], target.with_suffix(".png"))
    typer.echo(json.dumps(results, indent=2))


if __name__ == "__main__":
    typer.run(main)
