"""Walks between two noises, and the images along them."""

import numpy as np
import pytest
import support

import stepfuse as sf
from stepfuse.interpolation import interpolate_noise

Z0, Z1 = sf.normal(1, (3, 40)), sf.normal(2, (3, 40))


@pytest.mark.parametrize("path", ["slerp", "lerp"])
def test_a_walk_starts_and_ends_where_it_is_told(path):
    walk = interpolate_noise(Z0, Z1, 7, path)
    assert walk.shape == (7, 3, 40)
    np.testing.assert_allclose(walk[0], Z0, rtol=1e-6)
    np.testing.assert_allclose(walk[-1], Z1, rtol=1e-6, atol=1e-7)


def test_slerp_goes_round_at_an_even_pace():
    a, b = np.array([2.0, 0.0]), np.array([0.0, 2.0])
    quarter = np.linspace(0, np.pi / 2, 9)
    circle = 2 * np.stack([np.cos(quarter), np.sin(quarter)], axis=1)
    np.testing.assert_allclose(interpolate_noise(a, b, 9), circle, atol=1e-6)


def test_lerp_goes_straight_and_loses_length():
    walk = interpolate_noise([2.0, 0.0], [0.0, 2.0], 3, "lerp")
    np.testing.assert_allclose(walk[1], [1.0, 1.0])


def test_slerp_between_equal_noises_stays_there():
    np.testing.assert_allclose(interpolate_noise(Z0, Z0, 5), np.broadcast_to(Z0, (5, *Z0.shape)), rtol=1e-6)


def test_the_engine_draws_along_the_walk():
    z0, z1 = sf.normal(3, support.SHAPE), sf.normal(4, support.SHAPE)
    with support.make_engine() as engine:
        frames = engine.interpolate(z0, z1, n=4, cond="bag", steps=5)
        ends = engine.sample(2, noise=np.stack([z0, z1]), cond="bag", steps=5)
        again = engine.interpolate(z0, z1, n=4, cond="bag", steps=5)
    np.testing.assert_allclose(frames[[0, -1]], ends, atol=1e-5)  # the walk's ends are rounded once
    np.testing.assert_array_equal(frames, again)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param((Z0, Z1[:2], 3), r"shape of z0, \(3, 40\), got \(2, 40\)", id="shapes"),
        pytest.param((Z0, Z1, 1), "n must be at least 2, got 1", id="one-point"),
        pytest.param((Z0, Z1, 3, "spline"), "path must be .*, got 'spline'", id="path"),
        pytest.param((0 * Z0, Z1, 3), "length above 0", id="zeros"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        interpolate_noise(*arguments)
