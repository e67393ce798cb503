"""Each sample of a batch gets what it gets alone, whatever its neighbours are."""

import numpy as np
import pytest
import support
import tolerances
from hypothesis import given, settings
from hypothesis import strategies as st

import stepfuse as sf

MIX = {
    "sampler": ["ddim", "ddpm", "dpmpp_2m_sde", "lcm", "heun", "ddim", "ddim", "ddim", "unipc", "plms"],
    "steps": [4, 7, 5, 3, 3, 9, 1, 6, 6, 5],
    "guidance_scale": [3.0, 0.0, 1.0, 3.0, 3.0, 3.0, 1.0, 3.0, 3.0, 1.0],
    "eta": [0.0, None, None, None, None, 1.0, 0.5, 0.0, None, None],
    "cond": ["bag", "coat", "dress", "boot", "shirt", "sandal", None, None, "bag", "coat"],
    "seed": [3, 1, 4, 1, 5, 9, 2**64 - 1, 6, 2, 7],
}
COUNT = len(MIX["seed"])


@pytest.fixture(scope="module")
def tiny_bundle(tmp_path_factory):
    return support.write_tiny_bundle(tmp_path_factory.mktemp("mixed") / "tiny").path


def alone(engine, mix):
    return [engine.sample(1, **dict(zip(mix, one, strict=True)))[0] for one in zip(*mix.values(), strict=True)]


WIDTHS = [pytest.param(64, id="all-at-once"), pytest.param(5, id="queued"), pytest.param(2, id="one-by-one")]


@pytest.mark.parametrize("max_rows", WIDTHS)
def test_row_wise_network_same_bits(max_rows):
    with support.make_engine(max_rows=max_rows) as engine:
        np.testing.assert_array_equal(engine.sample(COUNT, **MIX), alone(engine, MIX))


@pytest.mark.parametrize("max_rows", WIDTHS)
def test_libraries_same_samples(tiny_bundle, backend, max_rows):
    with sf.Engine.load(tiny_bundle, backend=backend, max_rows=max_rows, threads=1) as engine:
        mixed, lone = engine.sample(COUNT, **MIX), np.stack(alone(engine, MIX))
    bound = tolerances.BATCH_ONNXRUNTIME
    np.testing.assert_allclose(mixed, lone, rtol=bound, atol=bound * abs(lone).max())


def test_a_mix_reversed_is_the_same_samples_reversed():
    reversed_mix = {name: values[::-1] for name, values in MIX.items()}
    with support.make_engine(max_rows=5) as engine:
        np.testing.assert_array_equal(engine.sample(COUNT, **reversed_mix), engine.sample(COUNT, **MIX)[::-1])


samples = st.tuples(
    st.sampled_from(["ddim", "ddpm", "dpmpp_2m", "lcm", "heun", "plms", "unipc"]),
    st.integers(1, 6),
    st.sampled_from([0.0, 1.0, 1.5, 3.0]),
    st.sampled_from([None, *support.NAMES]),
    st.integers(0, 2**64 - 1),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(samples, min_size=1, max_size=8), st.integers(2, 16))
def test_any_mix_through_any_width(drawn, max_rows):
    mix = dict(
        zip(("sampler", "steps", "guidance_scale", "cond", "seed"), map(list, zip(*drawn, strict=True)), strict=True)
    )
    with support.make_engine(max_rows=max_rows) as engine:
        np.testing.assert_array_equal(engine.sample(len(drawn), **mix), alone(engine, mix))
