"""How near samples are to real data, by whatever judges them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stepfuse.analysis.measures.frechet import FeatureFunction, Statistics, frechet_distance
from stepfuse.analysis.measures.judge import Judge
from stepfuse.serving.in_flight import Images


def require_reference(features: Judge | FeatureFunction | None, reference: Statistics | None) -> None:
    """Refuses a feature function without the real data's moments, and moments without a feature function.

    Raises:
        ValueError: If one is there without the other.
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
    """Refuses before anything is drawn what ``Statistics.of`` would refuse afterwards.

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
    """The Fréchet distance of samples to real data; None where nothing judges them.

    Raises:
        ValueError: As ``Statistics.of``: there must be more samples than features, finite and not all the same.
    """
    if isinstance(features, Judge):
        return features.distance(images)
    if features is None or reference is None:
        return None
    return frechet_distance(Statistics.of(features(images)), reference)


def share_named_right(
    images: Images, features: Judge | FeatureFunction | None, labels: npt.NDArray[np.int64] | None
) -> float | None:
    """The share of samples that a Judge names as they were asked for; None where there is none, or no classes."""
    if not isinstance(features, Judge) or labels is None:
        return None
    return features.accuracy(images, labels)
