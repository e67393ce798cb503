"""Writing a judge's folder: its network, and the moments of its features of real test images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stepfuse.analysis.measures.frechet import Statistics
from stepfuse.analysis.measures.judge import NETWORK, REFERENCE, Judge
from stepfuse.analysis.measures.judge_network import open_network, run_network, to_model_range
from stepfuse.bundle.new_folder import copy_files, write_folder


def write_judge(
    path: str | os.PathLike[str],
    *,
    name: str,
    network: str | os.PathLike[str],
    class_names: Sequence[str],
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.integer],
    provenance: str,
    licence: str,
    kept: int = 10,
    overwrite: bool = False,
) -> Judge:
    """Writes a judge's folder, complete or not at all.

    Args:
        path: The folder to make.
        name: The judge's name.
        network: An ONNX file with the input ``images`` (n, *shape), float32 in [-1, 1], and the outputs ``logits``
            (n, classes) and ``features`` (n, F); n is dynamic.
        class_names: A name for each logit.
        images: Real images that the network has not seen, uint8 (n, *shape), more than F.
        labels: Their classes, integers (n,).
        provenance: Where weights and images come from.
        licence: Terms of their use.
        kept: Number of images of each class that are stored, the first of each.
        overwrite: Whether a judge in the folder is replaced.

    Returns:
        The judge, read back and checked.

    Raises:
        ValueError: If ``images`` are not uint8, ``labels`` not integers (n,) within the classes, ``kept`` is below 1, a
            class has fewer than ``kept`` images, or there are no more images than features.
        BundleError: If the folder exists and ``overwrite`` is not set, or the network is not a judge's.

    Examples:
        >>> from stepfuse.analysis import Judge, write_judge
        >>> known = Judge.load("fashion")
        >>> images = np.random.default_rng(0).integers(0, 256, (100, 1, 28, 28)).astype(np.uint8)
        >>> judge = write_judge(
        ...     "my-judge",
        ...     name="mine",
        ...     network=sf.Bundle.load("fashion").path.parents[1] / "analysis/data/fashion/judge.onnx",
        ...     class_names=known.class_names,
        ...     images=images,  # real ones, which the network has not seen
        ...     labels=np.arange(100) % 10,
        ...     provenance="an example",
        ...     licence="Apache-2.0",
        ... )
        >>> judge.name
        'mine'
    """
    if images.dtype != np.uint8 or images.ndim < 2 or labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"images must be uint8 (n, *shape) and labels integers (n,),"
            f" got {images.dtype} {images.shape} and {labels.dtype} {labels.shape}"
        )
    counts = [int((labels == index).sum()) for index in range(len(class_names))]
    if kept < 1 or min(counts, default=0) < kept or sum(counts) != len(labels):
        raise ValueError(
            f"every class must have at least kept = {kept} images, and no image another class, got {counts}"
        )
    session = open_network(Path(network), images.shape[1:], len(class_names))
    inputs = to_model_range(images)
    statistics = Statistics.of(run_network(session, "features", inputs))
    accuracy = float((run_network(session, "logits", inputs).argmax(1) == labels).mean())
    chosen = np.concatenate([np.flatnonzero(labels == index)[:kept] for index in range(len(class_names))])

    def fill(folder: Path) -> None:
        copy_files(folder, {NETWORK: network})
        np.savez_compressed(
            folder / REFERENCE,
            mean=statistics.mean,
            cov=statistics.cov,
            count=np.int64(statistics.count),
            images=images[chosen],
            labels=labels[chosen].astype(np.int64),
        )

    manifest = {
        "name": name,
        "shape": list(images.shape[1:]),
        "dtype": "float32",
        "data_range": [-1.0, 1.0],
        "class_names": list(class_names),
        "real_count": statistics.count,
        "real_accuracy": accuracy,
        "files": None,
        "provenance": provenance,
        "licence": licence,
    }
    return write_folder(Path(path), manifest, fill, Judge.load, overwrite=overwrite)
