"""Walks between two noises, and the images along them."""

import numpy as np
import pytest
import support

import stepfuse as sf
from stepfuse.requests.interpolation import interpolate_noise, interpolate_noise_grid

Z0, Z1 = sf.normal(1, (3, 40)), sf.normal(2, (3, 40))
CORNERS = np.stack([sf.normal(seed, (3, 40)) for seed in range(4)])


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
        pytest.param((Z0, -2 * Z0, 3), r"less than half a turn apart, got 3\.14159", id="opposite"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        interpolate_noise(*arguments)


@pytest.mark.parametrize("path", ["slerp", "lerp"])
@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (3, 5), (4, 2)], ids=["corners-alone", "wide", "tall"])
def test_a_grid_has_its_corners_and_their_walks_as_edges(path, rows, columns):
    grid = interpolate_noise_grid(CORNERS, rows, columns, path)
    assert grid.shape == (rows, columns, 3, 40)
    np.testing.assert_array_equal(grid[[0, 0, -1, -1], [0, -1, 0, -1]], CORNERS)
    top_left, top_right, bottom_left, bottom_right = CORNERS
    np.testing.assert_allclose(grid[0], interpolate_noise(top_left, top_right, columns, path), atol=1e-6)
    np.testing.assert_allclose(grid[-1], interpolate_noise(bottom_left, bottom_right, columns, path), atol=1e-6)
    np.testing.assert_allclose(grid[:, 0], interpolate_noise(top_left, bottom_left, rows, path), atol=1e-6)
    np.testing.assert_allclose(grid[:, -1], interpolate_noise(top_right, bottom_right, rows, path), atol=1e-6)


def test_a_grid_of_straight_lines_is_bilinear():
    down, across = np.linspace(0, 1, 4)[:, None, None, None], np.linspace(0, 1, 6)[None, :, None, None]
    a, b, c, d = CORNERS.astype(np.float64)
    bilinear = (1 - down) * ((1 - across) * a + across * b) + down * ((1 - across) * c + across * d)
    np.testing.assert_allclose(interpolate_noise_grid(CORNERS, 4, 6, "lerp"), bilinear, atol=1e-6)


def test_a_grid_of_great_circles_keeps_the_length_of_its_corners():
    lengths = np.linalg.norm(CORNERS.reshape(4, -1), axis=1)
    grid = interpolate_noise_grid(CORNERS / lengths[:, None, None], 5, 7)
    np.testing.assert_allclose(np.linalg.norm(grid.reshape(35, -1), axis=1), 1, rtol=1e-6)


def test_a_grid_takes_its_corners_as_two_by_two():
    square = CORNERS.reshape(2, 2, 3, 40)
    np.testing.assert_array_equal(interpolate_noise_grid(square, 3, 4), interpolate_noise_grid(CORNERS, 3, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param((CORNERS[:3], 3, 3), r"corners must have shape .*, got \(3, 3, 40\)", id="three-corners"),
        pytest.param((CORNERS, 1, 3), "rows must be at least 2, got 1", id="one-row"),
        pytest.param((CORNERS, 3, 0), "columns must be at least 2, got 0", id="no-column"),
        pytest.param((CORNERS, 3, 3, "spline"), "path must be .*, got 'spline'", id="path"),
        pytest.param((0 * CORNERS, 3, 3), "length above 0", id="zeros"),
    ],
)
def test_a_bad_grid_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        interpolate_noise_grid(*arguments)
