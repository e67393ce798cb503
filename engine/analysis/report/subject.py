"""The subject of a report: a model, its student if it has one, and the judge of their samples."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.analysis.measures.flops import flops_of
from stepfuse.analysis.measures.frechet import FeatureFunction, Statistics
from stepfuse.analysis.measures.judge import Judge
from stepfuse.analysis.measures.onnx_features import feature_function
from stepfuse.bundle.bundle import Bundle
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.engine import Engine
from stepfuse.serving.in_flight import Images

#: Embedded models that were distilled from an embedded model.
STUDENTS = {"fashion": "fashion-8step"}

Model = str | os.PathLike[str] | Engine


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and what it is measured with.

    Attributes:
        name: The model's name.
        identity: SHA-256 of its network; empty for an engine that was given.
        engine: Generates the samples.
        features: A judge or a feature function; None leaves distances out.
        reference: Moments of the real data's features, for a function.
        judged_by: Description of the judge or the features, for the report.
        real: Real images; None if there are none.
        real_labels: Their classes, where they are known.
        flops: Operations of one row of one pass; None if they cannot be counted.
        student, student_name, student_flops: The same of the model that was distilled from it.
    """

    name: str
    identity: str
    engine: Engine
    features: Judge | FeatureFunction | None = None
    reference: Statistics | None = None
    judged_by: str = ""
    real: Images | None = field(default=None, repr=False)
    real_labels: npt.NDArray[np.int64] | None = field(default=None, repr=False)
    flops: int | None = None
    student: Engine | None = None
    student_name: str = ""
    student_flops: int | None = None


@contextmanager
def opened(
    model: Model,
    *,
    student: Model | None = None,
    judge: str | os.PathLike[str] | Judge | None = None,
    features: str | os.PathLike[str] | FeatureFunction | None = None,
    real: str | os.PathLike[str] | npt.ArrayLike | None = None,
) -> Iterator[Subject]:
    """Loads models and a judge that are given by name or path, and closes them at the end; given engines stay open.

    Raises:
        BundleError: If a model or a judge cannot be loaded.
        FileNotFoundError: If the file of ``features`` or ``real`` does not exist.
        ValueError: If ``judge`` is given with ``features`` or ``real``, these two are not given together, their shapes
            or classes are not the model's, ``features`` is no network of one float32 input, or the model has no
            training timesteps.
    """
    engine, bundle = _engine(model)
    if student is None and bundle is not None and bundle.name in STUDENTS and not isinstance(model, Engine):
        student = STUDENTS[bundle.name]
    student_engine, student_bundle = (None, None) if student is None else _engine(student)
    try:
        if engine.info.schedule.is_edm:
            raise ValueError(
                f"model must have training timesteps, which experiments step over, got one with {engine.info.schedule}"
            )
        name = bundle.name if bundle else "model"
        found, reference, judged_by, images = _features(name, engine.info, judge, features, real)
        yield Subject(
            name=name,
            identity=bundle.files["denoiser.onnx"]["sha256"] if bundle else "",
            engine=engine,
            features=found,
            reference=reference,
            judged_by=judged_by,
            real=found.real_images if isinstance(found, Judge) else images,
            real_labels=found.real_labels if isinstance(found, Judge) else None,
            flops=_flops(bundle),
            student=student_engine,
            student_name=student_bundle.name if student_bundle else "student" if student_engine else "",
            student_flops=_flops(student_bundle),
        )
    finally:
        for opened_engine, given in ((engine, model), (student_engine, student)):
            if opened_engine is not None and opened_engine is not given:
                opened_engine.close(abort=True)


def _engine(model: Model) -> tuple[Engine, Bundle | None]:
    if isinstance(model, Engine):
        return model, None
    return Engine.load(model), Bundle.load(model, verify=False)  # the engine has verified it


def _features(
    name: str, info: ModelInfo, judge: Any, features: Any, real: Any
) -> tuple[Judge | FeatureFunction | None, Statistics | None, str, Images | None]:
    """The judge or feature function, its reference, a description of both, and the real images that were given."""
    if judge is not None and (features is not None or real is not None):
        raise ValueError("judge brings its own features and real images: leave out features and real")
    if (features is None) != (real is None):
        missing = "real" if real is None else "features"
        raise ValueError(f"features and real go together: {missing} must be given, got None")
    if features is not None:
        images = _real_images(real, info.shape)
        function = features if callable(features) else feature_function(features, info.shape)
        reference = Statistics.of(function(images))
        source = Path(features).name if isinstance(features, str | os.PathLike) else "a function"
        words = f"the features of {source} ({reference.mean.size}), against {len(images):,} real samples"
        return function, reference, words, images
    found = judge if isinstance(judge, Judge) else Judge.for_model(name) if judge is None else Judge.load(judge)
    if found is None:
        return None, None, "", None
    wrong = _misfit(found, info)
    if wrong and judge is not None:
        raise ValueError(wrong)
    if wrong:
        return None, None, "", None
    words = (
        f"the judge {found.name}: a classifier that names {found.real_accuracy:.2%} of real test images right;"
        f" Fréchet distances are between its {found.feature_count} penultimate features of the samples and of"
        f" {found.reference.count:,} real test images (this is no Inception FID)"
    )
    return found, None, words, None


def _misfit(judge: Judge, info: ModelInfo) -> str:
    """Why a judge does not fit a model's samples; empty if it does."""
    names = next(iter(info.cond.values())).names if len(info.cond) == 1 else ()
    if judge.shape != info.shape:
        return f"the judge's images must have the model's shape {info.shape}, got {judge.shape}"
    if names and len(names) != len(judge.class_names):
        return f"the judge must tell apart the model's {len(names)} classes, got {len(judge.class_names)}"
    return ""


def _real_images(real: Any, shape: tuple[int, ...]) -> Images:
    if isinstance(real, str | os.PathLike):
        try:
            real = np.load(real, allow_pickle=False)
        except (ValueError, EOFError, MemoryError) as error:
            raise ValueError(f"real must be a .npy file of numbers, got {os.fspath(real)}: {error}") from error
    images = np.asarray(real)
    if images.shape[1:] != shape or not len(images) or images.dtype.kind != "f":
        wanted = f"(n, {', '.join(map(str, shape))})"
        raise ValueError(f"real must be floating point of shape {wanted}, got {images.dtype} {images.shape}")
    return images.astype(np.float32)


def _flops(bundle: Bundle | None) -> int | None:
    """Operations of a row; None, which leaves a column out, if onnx is missing or an operator is not countable."""
    if bundle is None:
        return None
    shapes = {
        "sample": bundle.info.shape,
        "timestep": (),
        **{name: one.shape for name, one in bundle.info.cond.items()},
    }
    try:
        return flops_of(bundle.denoiser, shapes)
    except (ImportError, ValueError):
        return None
