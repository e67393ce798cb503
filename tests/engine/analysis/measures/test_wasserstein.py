"""The sliced Wasserstein distance against closed forms."""

from math import gamma, pi, sqrt

import numpy as np
import pytest

from stepfuse.analysis.measures.wasserstein import sliced_wasserstein


@pytest.mark.parametrize("dimensions", [1, 2, 3, 16])
def test_a_shift_is_its_length_times_the_mean_of_a_unit_vectors_coordinate(dimensions):
    points = np.random.default_rng(0).standard_normal((500, dimensions))
    shift = np.random.default_rng(1).standard_normal(dimensions)
    mean = gamma(dimensions / 2) / (sqrt(pi) * gamma((dimensions + 1) / 2))
    expected = np.linalg.norm(shift) * mean
    assert sliced_wasserstein(points + shift, points) == pytest.approx(expected, rel=0.15)  # 64 directions
    assert sliced_wasserstein(points, points) < 0.02
