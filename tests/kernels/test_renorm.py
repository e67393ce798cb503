"""Guidance that keeps the norm of patches, in Triton: against numpy's norms, and the core's bits."""

import numpy as np
import pytest

import stepfuse as sf
from stepfuse.kernels import cfg_renorm, cfg_renorm_ref

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed: it comes for x86-64 Linux")

#: Slots of a forward of six rows: guided, conditional alone, unconditional alone, guided, absent.
ROW_COND, ROW_UNCOND = (1, 2, -1, 5, -1), (0, -1, 3, 4, -1)
SCALES = np.float32([4.0, 2.0, 3.0, -1.5, 2.0])
#: Several programs, the last not full; patches of one element, of all of a sample, of several channels alone.
CASES = {"tokens": ((3, 18, 16), 2), "elements": ((3, 1, 7), 1), "whole": ((1, 6, 6), 6), "odd": ((5, 9, 3), 3)}


@pytest.fixture
def given(device):
    return lambda values, dtype=np.float32: torch.from_numpy(np.array(values, dtype)).to(device)


def rows_of(columns=16):
    rows = np.zeros((len(SCALES), columns), np.float32)
    rows[:, sf.samplers.table.COLUMNS.index("g")] = SCALES
    return rows


def outputs_of(shape):
    outputs = np.random.default_rng(7).standard_normal((6, *shape)).astype(np.float32)
    outputs[0, :, :1, :1] = 0  # a patch that both predictions have zeros in
    outputs[1, :, :1, :1] = 0
    return outputs


def by_core(shape, patch, cond, uncond, scale):
    """What the engine's loop makes of two predictions: a step whose result is the guided one."""
    table = sf.StepTable.from_columns({"t": [0], "q_e": 1.0, "g": scale}).adapt(cfg_renorm=patch)

    def network(x, t, given):
        return np.where(given["y"].reshape(-1, 1, 1, 1) < 0, uncond, cond)

    of_class = {"y": sf.CondInput(dtype="int64", null=-1)}
    with sf.Engine.from_callable(network, shape=shape, schedule=sf.NoiseSchedule.linear(), cond=of_class) as engine:
        return engine.sample(cond=1, table=table, seed=0)[0]


@pytest.mark.parametrize("columns", [16, 32])
@pytest.mark.parametrize("case", CASES)
def test_predictions_are_the_core_s_to_the_bit_and_the_reference(given, case, columns):
    (shape, patch), outputs = CASES[case], outputs_of(CASES[case][0])
    prediction, maps = given(outputs), (given(ROW_COND, np.int32), given(ROW_UNCOND, np.int32))
    assert cfg_renorm(prediction, given(rows_of(columns)), patch, *maps) is prediction
    got = prediction.cpu().numpy()
    for cond, uncond, scale in zip(ROW_COND, ROW_UNCOND, SCALES, strict=True):
        if min(cond, uncond) < 0:
            continue
        want = cfg_renorm_ref(outputs[cond], outputs[uncond], scale, patch)
        for row in (cond, uncond):
            np.testing.assert_array_equal(got[row], by_core(shape, patch, outputs[cond], outputs[uncond], scale))
            # The blend is rounded to float32 before it is scaled: of terms up to 4 times 4 that may nearly cancel.
            np.testing.assert_allclose(got[row], want, rtol=1e-5, atol=2e-5)
    for row in (2, 3):  # of unguided slots
        np.testing.assert_array_equal(got[row], outputs[row])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_predictions_of_half_precision_are_rounded_once(given, dtype):
    shape, patch = CASES["tokens"]
    half = given(outputs_of(shape)).to(getattr(torch, dtype))
    maps = given(ROW_COND, np.int32), given(ROW_UNCOND, np.int32)
    wide = cfg_renorm(half.float(), given(rows_of()), patch, *maps)
    assert torch.equal(cfg_renorm(half.clone(), given(rows_of()), patch, *maps), wide.to(half.dtype))


def test_rows_apart_in_memory_are_found(given):
    shape, patch = CASES["tokens"]
    outputs, maps = outputs_of(shape), (given(ROW_COND, np.int32), given(ROW_UNCOND, np.int32))
    apart = given(np.zeros((6, 2, *shape)))[:, 0]
    apart.copy_(given(outputs))
    want = cfg_renorm(given(outputs), given(rows_of()), patch, *maps)
    assert torch.equal(cfg_renorm(apart, given(rows_of()), patch, *maps), want)


@pytest.mark.parametrize(
    ("shape", "patch", "message"),
    [
        ((6, 3, 16), 2, r"prediction must have shape \(R, C, H, W\), got \(6, 3, 16\)"),
        ((6, 3, 4, 5), 2, r"patch must be at least 1 and divide height and width, got 2 for \(6, 3, 4, 5\)"),
        ((6, 3, 4, 4), 0, "patch must be at least 1 and divide height and width, got 0"),
    ],
)
def test_bad_input_is_named(given, shape, patch, message):
    maps = given(ROW_COND, np.int32), given(ROW_UNCOND, np.int32)
    with pytest.raises(ValueError, match=message):
        cfg_renorm(given(np.zeros(shape)), given(rows_of()), patch, *maps)
