"""The noise: Philox's published vectors, the float64 oracle, its statistics, and what it does not depend on."""

from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import numpy as np
import pytest
import tolerances
from scipy import stats

import stepfuse as sf
from stepfuse import _core
from stepfuse.samplers.noise import INITIAL_STATE, STEP, normal_oracle, philox4x32

ISAS = _core.isas()
SEEDS = {"zero": 0, "small": 7, "above-32-bits": 7 + (1 << 32), "largest": (1 << 64) - 1}


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        pytest.param((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8), id="zeros"),
        pytest.param((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD), id="ones"),
        pytest.param(
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
            id="pi",
        ),
    ],
)
def test_philox_gives_random123s_known_answers(counter, key, words):
    assert tuple(philox4x32(np.array(counter, dtype=np.uint64)[:, None], key)[:, 0]) == words


@pytest.mark.parametrize("n", [1, 3, 111, 4096, (1 << 16) + 5], ids=["one", "below-a-block", "odd", "aligned", "large"])
@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_every_isa_is_the_oracle_and_all_agree_to_the_bit(seed, n):
    for step, stream in [(0, INITIAL_STATE), (3, STEP), ((1 << 32) - 1, STEP)]:
        portable = _core.normal(seed, step, stream, n, isa="portable")
        np.testing.assert_allclose(
            portable, normal_oracle(seed, (n,), step=step, stream=stream), rtol=0, atol=tolerances.NOISE
        )
        for isa in ISAS:
            np.testing.assert_array_equal(_core.normal(seed, step, stream, n, isa=isa), portable)


@pytest.fixture(scope="module")
def draws():
    return sf.normal(2024, (10**6,)).astype(np.float64)


def test_moments_are_a_standard_normals(draws):
    # Mean, variance, skewness and excess kurtosis over their standard errors at this many draws.
    n = draws.size
    errors = [
        draws.mean() * n**0.5,
        (draws.var() - 1) * (n / 2) ** 0.5,
        stats.skew(draws) * (n / 6) ** 0.5,
        stats.kurtosis(draws) * (n / 24) ** 0.5,
    ]
    assert np.abs(errors).max() < 4


def test_distribution_is_standard_normal(draws):
    assert stats.kstest(draws, "norm").pvalue > 0.01


def test_neighbours_within_and_between_philox_blocks_are_uncorrelated(draws):
    for lag in (1, 2, 3, 4, 8, 64):
        assert abs(np.mean(draws[:-lag] * draws[lag:])) < 4 / draws.size**0.5, lag


def test_magnitude_is_bounded_by_the_smallest_uniform(draws):
    assert 4.5 < np.abs(draws).max() < 5.8  # sqrt(-2 ln 2^-24) = 5.77


def test_other_seeds_steps_and_streams_are_uncorrelated():
    n = 10**5
    keys = [(seed, step, stream) for seed in SEEDS.values() for step in (0, 1, 999) for stream in (INITIAL_STATE, STEP)]
    noise = [sf.normal(seed, (n,), step=step, stream=stream) for seed, step, stream in keys]
    for (key, a), (other, b) in combinations(zip(keys, noise, strict=True), 2):
        assert abs(np.mean(a * b)) < 4.5 / n**0.5, (key, other)


@pytest.mark.parametrize("isa", ISAS)
def test_pieces_from_many_threads_are_the_whole(isa):
    n, piece = 100_003, 4 * 1117
    with ThreadPoolExecutor(8) as pool:
        pieces = pool.map(
            lambda first: _core.normal(9, 2, STEP, min(piece, n - first), first=first, isa=isa), range(0, n, piece)
        )
    np.testing.assert_array_equal(np.concatenate(list(pieces)), _core.normal(9, 2, STEP, n))


def test_elements_are_numbered_in_c_order():
    np.testing.assert_array_equal(sf.normal(5, (2, 3, 7)), sf.normal(5, (42,)).reshape(2, 3, 7))


@pytest.mark.parametrize("max_rows", [1, 4, 64], ids=["alone", "in-iterations", "together"])
def test_engine_draws_a_samples_noise_whatever_its_batch_and_slot(max_rows):
    shape, seed, steps = (3, 7), 40, 3
    schedule = sf.NoiseSchedule.linear()
    engine = sf.Engine.from_callable(lambda x, t, cond: 0 * x, shape=shape, schedule=schedule, max_rows=max_rows)

    keep_x = sf.StepTable.from_columns({"t": [0], "q_x": 1.0})
    starts = engine.sample(6, table=keep_x, seed=seed)
    np.testing.assert_array_equal(starts, [sf.normal(seed + i, shape) for i in range(6)])

    keep_z = sf.StepTable.from_columns({"t": np.zeros(steps), "q_z": 1.0})
    lasts = engine.sample(6, table=keep_z, seed=seed)
    np.testing.assert_array_equal(lasts, [sf.normal(seed + i, shape, step=steps - 1, stream=STEP) for i in range(6)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"n": -1}, "n must be at least 0, got -1", id="n"),
        pytest.param({"n": 4, "first": 2}, "first must be a multiple of 4 and at least 0, got 2", id="within-a-block"),
        pytest.param({"n": 4, "first": -4}, "first must be a multiple of 4 and at least 0, got -4", id="before-0"),
        pytest.param({"n": 4, "isa": "sse9"}, r"isa must be one .*\(portable.*\), got 'sse9'", id="isa"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        _core.normal(0, 0, INITIAL_STATE, **arguments)
