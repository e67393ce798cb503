"""The Fréchet distance against closed forms, scipy's matrix root and torchmetrics."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from stepfuse.analysis import Statistics, frechet_distance

#: Relative to the traces: float64 moments, and singular values of F terms each.
FLOAT64 = 1e-12

#: The same where the independent implementation takes roots of the eigenvalues of a product of covariances: an
#: eigenvalue near 0 is off by 2^-52 of the largest, its root by 2^-26.
HALF_OF_FLOAT64 = 1e-7


def gaussian(mean, cov, count=100):
    return Statistics(np.asarray(mean, float), np.asarray(cov, float), count)


def random_gaussian(rng, size, rank=None):
    factor = rng.standard_normal((size, rank or size))
    return gaussian(rng.standard_normal(size), factor @ factor.T)


def scale(a, b):
    return np.trace(a.cov) + np.trace(b.cov)


def features_with(mean, deviation):
    """Rows of one feature with exactly this mean and unbiased standard deviation."""
    return np.array([[mean - deviation], [mean], [mean + deviation]])


def test_one_feature_is_the_difference_of_means_and_of_deviations():
    a, b = Statistics.of(features_with(1.0, 2.0)), Statistics.of(features_with(4.0, 0.5))
    assert frechet_distance(a, b) == pytest.approx((4.0 - 1.0) ** 2 + (2.0 - 0.5) ** 2, rel=FLOAT64)


def test_covariances_that_commute_have_a_closed_form():
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    u, v = rng.uniform(0.1, 3.0, (2, 6))
    a, b = gaussian(np.arange(6), axes * u @ axes.T), gaussian(np.ones(6), axes * v @ axes.T)
    expected = np.sum((np.arange(6) - 1.0) ** 2) + np.sum((np.sqrt(u) - np.sqrt(v)) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=FLOAT64)


def test_a_translation_costs_its_squared_length():
    rng = np.random.default_rng(1)
    features, shift = rng.standard_normal((50, 8)), np.arange(8) / 4
    distance = frechet_distance(Statistics.of(features), Statistics.of(features + shift))
    assert distance == pytest.approx(shift @ shift, rel=FLOAT64)


def test_doubling_every_feature_about_its_mean_costs_the_trace():
    features = np.random.default_rng(2).standard_normal((50, 8))
    a = Statistics.of(features)
    b = Statistics.of(a.mean + 2.0 * (features - a.mean))
    assert frechet_distance(a, b) == pytest.approx(np.trace(a.cov), rel=FLOAT64)


@pytest.mark.parametrize(
    ("size", "rank_a", "rank_b"),
    [(1, 1, 1), (5, 5, 5), (64, 64, 64), (64, 60, 64), (64, 20, 30)],
    ids=["one feature", "small", "as the judge", "dead features", "both singular"],
)
def test_it_is_what_scipy_makes_of_the_formula(size, rank_a, rank_b):
    rng = np.random.default_rng(size + rank_a)
    a, b = random_gaussian(rng, size, rank_a), random_gaussian(rng, size, rank_b)
    root = scipy.linalg.sqrtm(a.cov)
    inner = scipy.linalg.sqrtm(root @ b.cov @ root)  # similar to a.cov @ b.cov, and symmetric
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.cov + b.cov - 2.0 * inner).real
    tolerance = FLOAT64 if rank_a == rank_b == size else HALF_OF_FLOAT64
    assert frechet_distance(a, b) == pytest.approx(expected, abs=tolerance * scale(a, b))
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), abs=FLOAT64 * scale(a, b))


class Projection(torch.nn.Module):
    """A feature extractor for torchmetrics: images (n, 3, 8, 8) to 12 features."""

    num_features = 12

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(3)
        self.weight = torch.from_numpy(rng.standard_normal((192, 12)) / 14)

    def forward(self, images):
        return torch.tanh(images.double().flatten(1) @ self.weight)


@pytest.mark.parametrize(("real", "fake"), [(500, 500), (300, 20)], ids=["as many", "hardly more than features"])
def test_it_is_what_torchmetrics_reports(real, fake):
    rng = np.random.default_rng(real)
    sets = [
        torch.from_numpy(rng.standard_normal((real, 3, 8, 8))),
        torch.from_numpy(rng.uniform(-1, 2, (fake, 3, 8, 8))),
    ]
    metric = FrechetInceptionDistance(feature=Projection())
    for is_real, images in zip((True, False), sets, strict=True):
        for part in images.split(64):
            metric.update(part, real=is_real)
    a, b = (Statistics.of(Projection()(images).numpy()) for images in sets)
    assert frechet_distance(a, b) == pytest.approx(float(metric.compute()), rel=1e-10)  # sums of squares cancel there


def test_equal_moments_are_at_distance_zero():
    rng = np.random.default_rng(4)
    for rank in (64, 20):
        a = random_gaussian(rng, 64, rank)
        assert 0.0 <= frechet_distance(a, a) <= FLOAT64 * scale(a, a)


def test_moments_are_those_of_numpy_in_float64():
    features = np.random.default_rng(5).standard_normal((40, 6)).astype(np.float32) + np.float32(1000.0)
    statistics = Statistics.of(features)
    assert statistics.mean.dtype == statistics.cov.dtype == np.float64
    assert statistics.count == 40
    np.testing.assert_allclose(statistics.mean, features.astype(np.float64).mean(0), rtol=1e-15)
    np.testing.assert_allclose(statistics.cov, np.cov(features.astype(np.float64).T), rtol=1e-9, atol=1e-12)


GOOD = np.random.default_rng(6).standard_normal((20, 4))


def spoiled(value):
    features = GOOD.copy()
    features[[3, 7], 1] = value
    return features


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (GOOD[:, 0], r"features must have shape \(images, features\), got \(20,\)"),
        (GOOD[:, :, None], r"features must have shape \(images, features\), got \(20, 4, 1\)"),
        (GOOD[:, :0], r"features must have shape \(images, features\), got \(20, 0\)"),
        (GOOD.astype(complex), "features must be real numbers, got complex128"),
        (np.full((20, 4), "cat"), "features must be real numbers, got <U3"),
        (spoiled(np.nan), "features must be finite, got NaN or infinity in 2 of 20 rows"),
        (spoiled(-np.inf), "features must be finite, got NaN or infinity in 2 of 20 rows"),
        (np.ones((20, 4)), "features must differ between images, got the same row 20 times"),
        (np.ones((3, 4)), "features must differ between images, got the same row 3 times"),
        (GOOD[:4], "more images than features, or the covariance is singular: got 4 images of 4 features"),
        (GOOD[:1], "more images than features, or the covariance is singular: got 1 images of 4 features"),
    ],
)
def test_features_without_moments_are_refused(features, message):
    with pytest.raises(ValueError, match=message):
        Statistics.of(features)


def test_one_image_more_than_features_is_enough():
    assert Statistics.of(GOOD[:5]).count == 5


@pytest.mark.parametrize(
    ("mean", "cov", "count", "message"),
    [
        (np.zeros(2), np.eye(3), 9, r"mean and cov must have shapes \(F,\) and \(F, F\), got \(2,\) and \(3, 3\)"),
        (np.zeros((1, 2)), np.eye(2), 9, r"got \(1, 2\) and \(2, 2\)"),
        (np.zeros(0), np.zeros((0, 0)), 9, r"got \(0,\) and \(0, 0\)"),
        (np.array([0, np.nan]), np.eye(2), 9, "must be finite"),
        (np.zeros(2), np.array([[1, np.inf], [np.inf, 1]]), 9, "must be finite"),
        (np.zeros(2), np.array([[1, 0.5], [0, 1]]), 9, "cov must be symmetric, got a difference of 0.5"),
        (np.zeros(2), np.array([[1, 2], [2, 1]]), 9, "cov must have no negative eigenvalue, got -1"),
        (np.zeros(2), np.eye(2), 1, "count must be at least 2, got 1"),
    ],
)
def test_moments_that_no_features_have_are_refused(mean, cov, count, message):
    with pytest.raises(ValueError, match=message):
        Statistics(mean, cov, count)


def test_sets_of_different_features_have_no_distance():
    with pytest.raises(ValueError, match="both sets must have as many features, got 4 and 3"):
        frechet_distance(Statistics.of(GOOD), Statistics.of(GOOD[:, :3]))
