"""Distance of samples to real data and accuracy of their classes, by a judge or a feature function."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stepfuse.analysis.measures.frechet import FeatureFunction, Statistics, frechet_distance
from stepfuse.analysis.measures.judge import Judge
from stepfuse.serving.in_flight import Images


def require_reference(features: Judge | FeatureFunction | None, reference: Statistics | None) -> None:
    """Checks that a feature function has the real data's moments as its reference, and a judge no other.

    Raises:
        ValueError: If a feature function or a reference is given without the other, or a reference with a judge.
    """
    if isinstance(features, Judge):
        if reference is not None:
            raise ValueError("reference must be left out with a Judge, which brings its own")
    elif (features is None) != (reference is None):
        missing = "reference" if reference is None else "features"
        raise ValueError(f"features and reference go together: {missing} must be given, got None")


def require_more_than_features(
    samples: int, features: Judge | FeatureFunction | None, reference: Statistics | None
) -> None:
    """Checks, before any sample is generated, that ``Statistics.of`` will have more samples than features.

    Raises:
        ValueError: If there are no more samples than features.
    """
    known = features.reference if isinstance(features, Judge) else reference
    if known is not None and samples <= known.mean.size:
        raise ValueError(
            "samples must be more than there are features, or the covariance is singular:"
            f" got {samples} images of {known.mean.size} features"
        )


def distance_to_real(
    images: Images, features: Judge | FeatureFunction | None, reference: Statistics | None
) -> float | None:
    """The Fréchet distance of samples to real data; None without features.

    Raises:
        ValueError: If there are no more samples than features, a feature is not finite, or all samples have the same.
    """
    if isinstance(features, Judge):
        return features.distance(images)
    if features is None or reference is None:
        return None
    return frechet_distance(Statistics.of(features(images)), reference)


def share_named_right(
    images: Images, features: Judge | FeatureFunction | None, labels: npt.NDArray[np.int64] | None
) -> float | None:
    """The share of samples that a judge classifies as their labels say; None without a judge or without labels."""
    if not isinstance(features, Judge) or labels is None:
        return None
    return features.accuracy(images, labels)
