"""Writing a judge: its network, and what it makes of real test images, as a folder."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stepfuse.analysis.frechet import Statistics
from stepfuse.analysis.judge import NETWORK, REFERENCE, Judge, open_network, run_network, to_model_range
from stepfuse.bundle import FORMAT_VERSION, MANIFEST, _put_in_place, _sha256
from stepfuse.errors import BundleError


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
    """Writes a judge: all of it, or nothing.

    Args:
        path: The folder to make.
        name: The judge's name.
        network: An ONNX file with the input ``images`` (n, *shape), float32 in [-1, 1], and the outputs ``logits``
            (n, classes) and ``features`` (n, F); n is dynamic.
        class_names: A name for each logit.
        images: Real images that the network has not seen, uint8 (n, *shape), more than F.
        labels: Their classes, integers (n,).
        provenance: Where weights and images come from.
        licence: Under which terms.
        kept: How many images of each class are stored, the first of each.
        overwrite: Whether a judge that is there already is replaced.

    Returns:
        The judge, read back and checked.

    Raises:
        ValueError: If images or labels are not as said, or a class has fewer than ``kept`` images.
        BundleError: If the folder is there already and ``overwrite`` is not set, or the result does not load.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise BundleError(f"{target} exists already: pass overwrite=True to replace it")
    if target.exists() and not (target / MANIFEST).is_file():
        raise BundleError(f"{target} has no {MANIFEST}: only a judge is replaced")
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

    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        shutil.copyfile(network, scratch / NETWORK)
        np.savez_compressed(
            scratch / REFERENCE,
            mean=statistics.mean,
            cov=statistics.cov,
            count=np.int64(statistics.count),
            images=images[chosen],
            labels=labels[chosen].astype(np.int64),
        )
        files = [scratch / NETWORK, scratch / REFERENCE]
        manifest = {
            "format_version": FORMAT_VERSION,
            "name": name,
            "shape": list(images.shape[1:]),
            "dtype": "float32",
            "data_range": [-1.0, 1.0],
            "class_names": list(class_names),
            "real_count": statistics.count,
            "real_accuracy": accuracy,
            "files": {file.name: {"size": file.stat().st_size, "sha256": _sha256(file)} for file in files},
            "provenance": provenance,
            "licence": licence,
        }
        (scratch / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        scratch.chmod(0o755)  # mkdtemp's own mode would lock other users out
        judge = Judge.load(scratch)
        _put_in_place(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return judge
