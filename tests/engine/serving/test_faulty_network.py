"""What a network does wrong: the error names the fault, and the engine then gives the same bits as a fresh one."""

import signal

import numpy as np
import pytest
import support

import stepfuse as sf

TABLE = sf.samplers.ddim(support.SCHEDULE, 4, guidance_scale=3.0)


@pytest.fixture(autouse=True)
def heed_ctrl_c():  # which a shell has its background processes ignore
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Faulty:
    """The row-wise network, until it is called at the second of TABLE's timesteps: there it does what ``fault`` does.

    Only the first ``times`` calls there are faulty.
    """

    def __init__(self, fault, times=None):
        self.fault, self.left = fault, times

    def __call__(self, x, t, cond):
        prediction = support.rowwise(x, t, cond)
        if t[0] != TABLE["t"][1] or self.left == 0:
            return prediction
        self.left = None if self.left is None else self.left - 1
        return self.fault(prediction)


def put(value):
    def fault(prediction):
        prediction[-1, 0, 0, 0] = value
        return prediction

    return fault


def out_of_memory(prediction):
    raise MemoryError("no room for attention")


def interrupt(prediction):
    signal.raise_signal(signal.SIGINT)
    return prediction


# The coefficients are those of the step; 500 is the second of TABLE's timesteps.
NON_FINITE = r"sample 1 went non-finite at step 1 of 4 \(ddim\): .* t = 500, s = 1, g = 3, p_x = "
FAULTS = {
    "its-own-exception": (out_of_memory, MemoryError, "no room for attention"),
    "ctrl-c": (interrupt, KeyboardInterrupt, None),
    "shape": (lambda e: e[:, 0], sf.DenoiserError, r"must return shape \(2, 1, 4, 5\), got \(2, 4, 5\)"),
    "too-few-rows": (lambda e: e[:1], sf.DenoiserError, r"must return shape \(2, 1, 4, 5\), got \(1, 1, 4, 5\)"),
    "nothing": (lambda e: None, sf.DenoiserError, r"must return shape \(2, 1, 4, 5\), got \(\)"),
    "complex": (lambda e: e + 0j, sf.DenoiserError, "must return real numbers, got dtype complex64"),
    "nan": (put(np.nan), sf.DenoiserError, NON_FINITE),
    "inf": (put(-np.inf), sf.DenoiserError, NON_FINITE),
}


@pytest.mark.parametrize(("fault", "error", "message"), FAULTS.values(), ids=FAULTS)
def test_a_network_s_fault_comes_through_and_the_engine_recovers(fault, error, message):
    faulty = Faulty(fault)
    with support.make_engine(faulty) as engine:
        with pytest.raises(error, match=message):
            engine.sample(2, cond="bag", table=TABLE, seed=1)
        faulty.left = 0
        images = engine.sample(2, cond="bag", table=TABLE, seed=1)
    np.testing.assert_array_equal(images, [support.replay(TABLE, cond=1, seed=seed)[0] for seed in (1, 2)])


def test_a_fault_that_passes_is_survived_with_a_warning(caplog):
    with support.make_engine(Faulty(out_of_memory, times=1)) as engine:
        images = engine.sample(2, cond="bag", table=TABLE, seed=1)
        assert engine.stats()["failed_forwards"] == 1
    np.testing.assert_array_equal(images, [support.replay(TABLE, cond=1, seed=seed)[0] for seed in (1, 2)])
    assert "a forward of 2 requests raised MemoryError('no room for attention'): each is tried alone" in caplog.text


def test_a_network_may_scribble_on_what_it_is_given():
    def network(x, t, cond):
        prediction = support.rowwise(x, t, cond)
        for given in (x, t, cond["class_labels"]):
            given[...] = 0
        return prediction

    with support.make_engine(network) as engine:
        image = engine.sample(cond="bag", table=TABLE, seed=1)[0]
    np.testing.assert_array_equal(image, support.replay(TABLE, cond=1, seed=1)[0])


def test_onnxruntime_s_own_error_comes_through_and_the_engine_recovers(tmp_path):
    unnamed = {"class_labels": sf.CondInput(dtype="int64", null=support.NULL)}  # no names: any index is let through
    path = support.write_tiny_bundle(tmp_path / "tiny", cond=unnamed).path
    with sf.Engine.load(path, threads=1) as engine:
        expected = engine.sample(2, cond=1, steps=3, seed=1)
        with pytest.raises(Exception, match="indices element out of data bounds, idx=99"):
            engine.sample(2, cond=99, steps=3)
        np.testing.assert_array_equal(engine.sample(2, cond=1, steps=3, seed=1), expected)
