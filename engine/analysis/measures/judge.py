"""The judge: a small ONNX classifier of real images that classifies generated ones and measures their distance.

A judge is a folder as a bundle is: ``manifest.json`` lists every file with its size and SHA-256, nothing is unpickled.
``judge.onnx`` has the input ``images`` and the outputs ``logits`` and ``features``, all with a dynamic first dimension;
``reference.npz`` holds the moments of the features of real test images, and a few of these images.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.analysis.measures.frechet import Images, Statistics, frechet_distance
from stepfuse.analysis.measures.judge_network import open_network, run_network, to_model_range
from stepfuse.bundle.folder import MANIFEST, entry, open_folder
from stepfuse.bundle.open_file import OpenFile
from stepfuse.display import brief
from stepfuse.errors import BundleError
from stepfuse.files.npz import read_npz

NETWORK, REFERENCE = "judge.onnx", "reference.npz"
MOST_BYTES = 1 << 28  # of the reference, packed and unpacked: the moments of 4,000 features

_JUDGES = Path(__file__).resolve().parents[1] / "data"  # a strict editable install is a tree of links
_OF_MODEL = {"fashion": "fashion", "fashion-8step": "fashion"}


@dataclass(frozen=True, eq=False)
class Judge:
    """A classifier that judges images; made by ``Judge.load``.

    Attributes:
        name: The judge's name.
        class_names: Names of its classes.
        shape: Shape of one image, (C, H, W).
        feature_count: Size F of the penultimate layer, which ``features`` returns.
        real_accuracy: Share of the real test images that it classifies correctly, as it would those of a perfect
            generator.
        reference: Moments of the features of the real test images.
        real_images: A few of them, float32 (n, *shape) in [-1, 1], equally many of each class.
        real_labels: Their classes, int64 (n,).
        provenance: Where the weights and the images come from.
        licence: Terms of their use.

    Examples:
        >>> from stepfuse.analysis import Judge
        >>> judge = Judge.load("fashion")
        >>> judge.name == Judge.for_model("fashion").name, judge.feature_count
        (True, 64)
        >>> with sf.Engine.load("fashion-8step") as engine:
        ...     images = engine.sample(8, cond="bag", seed=0)
        >>> judge.features(images).shape, judge.classify(images).shape
        ((8, 64), (8,))
        >>> 0 <= judge.accuracy(images, np.full(8, 8)) <= 1  # class 8 is bag
        True
        >>> judge.distance(np.concatenate([images] * 10)) > 0  # more samples than there are features
        True
    """

    name: str
    class_names: tuple[str, ...]
    shape: tuple[int, ...]
    feature_count: int
    real_accuracy: float
    reference: Statistics = field(repr=False)
    real_images: Images = field(repr=False)
    real_labels: npt.NDArray[np.int64] = field(repr=False)
    provenance: str = field(repr=False)
    licence: str = field(repr=False)
    _session: Any = field(repr=False)

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str]) -> Judge:
        """Opens a judge of the package by name, or one in a folder, and checks every file against the manifest.

        Args:
            name_or_path: Such as ``"fashion"``, or a folder with a ``manifest.json``.

        Raises:
            BundleError: If there is no such judge, a file is missing, not listed or of another size or checksum, an
                entry of the manifest is missing or invalid, or the network or the reference does not fit it.
        """
        path = _locate(name_or_path)
        folder = open_folder(path)
        manifest, files = folder.manifest, folder.opened
        if missing := {NETWORK, REFERENCE} - set(files):
            raise BundleError(f"{path / MANIFEST}: files must list {' and '.join(sorted(missing))}, got {list(files)}")
        shape = _shape(path, entry(path, manifest, "shape", list))
        class_names = tuple(str(name) for name in entry(path, manifest, "class_names", list))
        if manifest.get("data_range") != [-1.0, 1.0]:
            raise BundleError(f"{path / MANIFEST}: data_range must be [-1, 1], got {brief(manifest.get('data_range'))}")
        try:
            reference, images, labels = _read_reference(files[REFERENCE], shape, len(class_names))
        except (TypeError, ValueError, OverflowError) as error:
            raise BundleError(f"{path / REFERENCE} does not hold what a judge needs: {error}") from error
        return cls(
            name=entry(path, manifest, "name", str),
            class_names=class_names,
            shape=shape,
            feature_count=reference.mean.size,
            real_accuracy=entry(path, manifest, "real_accuracy", float),
            reference=reference,
            real_images=images,
            real_labels=labels,
            provenance=entry(path, manifest, "provenance", str),
            licence=entry(path, manifest, "licence", str),
            _session=open_network(folder.networks[NETWORK], shape, len(class_names), reference.mean.size),
        )

    @classmethod
    def for_model(cls, name: str) -> Judge | None:
        """The judge of an embedded model by the model's name; None if it has none."""
        return cls.load(_OF_MODEL[name]) if name in _OF_MODEL else None

    def features(self, images: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """The penultimate layer's outputs, (n, F).

        Args:
            images: (n, *shape) floating-point numbers in [-1, 1]; values beyond are clipped, as in a picture.

        Raises:
            ValueError: If they have another shape or dtype, or a number is not finite.
        """
        return run_network(self._session, "features", self._checked(images))

    def classify(self, images: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The class of each image, (n,); arguments and errors are those of ``features``."""
        classes: npt.NDArray[np.int64] = run_network(self._session, "logits", self._checked(images)).argmax(1)
        return classes.astype(np.int64, copy=False)

    def accuracy(self, images: npt.ArrayLike, labels: npt.ArrayLike) -> float:
        """Share of images that are classified as their labels say.

        Args:
            images: As for ``features``.
            labels: The wanted classes, integers (n,).

        Raises:
            ValueError: As ``features``; or if ``labels`` are not integers (n,), or one is no class of the judge.
        """
        named, wanted = self.classify(images), np.asarray(labels)
        if wanted.shape != named.shape or wanted.dtype.kind not in "iu":
            raise ValueError(f"labels must be integers of shape {named.shape}, got {wanted.dtype} {wanted.shape}")
        if wanted.min() < 0 or wanted.max() >= len(self.class_names):
            raise ValueError(
                f"labels must be between 0 and {len(self.class_names) - 1}, got {wanted.min()} to {wanted.max()}"
            )
        return float((named == wanted).mean())

    def distance(self, images: npt.ArrayLike) -> float:
        """The Fréchet distance of the images' features to those of the real test images; see ``frechet_distance``.

        It falls with the number of images and varies with the sample, so it compares only between sets of equal size,
        with equally many images of each class. 1,000 real training images of Fashion-MNIST are at 1.02 ± 0.12.

        Raises:
            ValueError: As ``features``; or if there are no more images than features, or all have the same features.
        """
        return frechet_distance(Statistics.of(self.features(images)), self.reference)

    def _checked(self, images: npt.ArrayLike) -> Images:
        given = np.asarray(images)
        if given.ndim != len(self.shape) + 1 or given.shape[1:] != self.shape or not len(given):
            raise ValueError(f"images must have shape (n, {', '.join(map(str, self.shape))}), got {given.shape}")
        if given.dtype.kind != "f":
            raise ValueError(f"images must be floating-point numbers in [-1, 1], got {given.dtype}")
        with np.errstate(over="ignore"):
            images32 = np.ascontiguousarray(given, np.float32)
        if not (finite := np.isfinite(images32)).all():
            wrong = np.flatnonzero(~finite.reshape(len(finite), -1).all(1))
            raise ValueError(f"images must be finite, got NaN or infinity in {len(wrong)}, first in number {wrong[0]}")
        return np.clip(images32, -1.0, 1.0)


def embedded_judges() -> list[str]:
    """Names of the judges that come with the package."""
    return sorted(manifest.parent.name for manifest in _JUDGES.glob(f"*/{MANIFEST}"))


def _locate(name_or_path: str | os.PathLike[str]) -> Path:
    given = os.fspath(name_or_path)
    if given in embedded_judges():
        return _JUDGES / given
    if (Path(given) / MANIFEST).is_file():
        return Path(given)
    known = ", ".join(embedded_judges()) or "none"
    raise BundleError(f"{given!r} is neither a judge of this package ({known}) nor a folder with a {MANIFEST}")


def _read_reference(
    file: OpenFile, shape: tuple[int, ...], classes: int
) -> tuple[Statistics, Images, npt.NDArray[np.int64]]:
    if file.size > MOST_BYTES:
        raise ValueError(f"it must have at most {MOST_BYTES} bytes, got {file.size}")
    arrays = read_npz(file.read(), MOST_BYTES)
    if missing := {"mean", "cov", "count", "images", "labels"} - arrays.keys():
        raise ValueError(f"it must hold {' and '.join(sorted(missing))}, got {', '.join(arrays) or 'nothing'}")
    statistics = Statistics(arrays["mean"], arrays["cov"], int(arrays["count"]))
    images, labels = arrays["images"], arrays["labels"].astype(np.int64)
    if images.dtype != np.uint8 or images.shape != (len(labels), *shape) or math.prod(images.shape) < 1:
        raise ValueError(f"images must be uint8 (n, {', '.join(map(str, shape))}), got {images.dtype} {images.shape}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must be between 0 and {classes - 1}, got {labels.min()} to {labels.max()}")
    return statistics, to_model_range(images), labels


def _shape(path: Path, given: list[Any]) -> tuple[int, ...]:
    if not all(type(size) is int and size > 0 for size in given) or len(given) != 3:
        raise BundleError(f"{path / MANIFEST}: shape must be three sizes of at least 1, got {brief(given)}")
    return tuple(given)
