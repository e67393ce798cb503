"""Guidance and dynamic thresholding in Triton: against numpy's norms, deviation and quantile, and the core."""

import numpy as np
import pytest
import tolerances

import stepfuse as sf
from stepfuse.kernels import (
    adapt_guidance,
    adapt_guidance_ref,
    dynamic_threshold,
    dynamic_threshold_ref,
    guidance_rescale,
    guidance_rescale_ref,
)
from stepfuse.kernels.columns import BLENDS
from stepfuse.samplers.table import COLUMNS

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed: it comes for x86-64 Linux")

SIZES = {"one": 1, "two": 2, "odd": 111, "aligned": 1024, "one-more": 2049}
#: Slots of a forward of six rows: guided, conditional alone, unconditional alone, guided, absent.
ROW_COND, ROW_UNCOND = (1, 2, -1, 5, -1), (0, -1, 3, 4, -1)
SLOTS = len(ROW_COND)


@pytest.fixture
def given(device):
    return lambda values, dtype=np.float32: torch.from_numpy(np.array(values, dtype)).to(device)


def random_inputs(n, *, scale=1.0):
    rng = np.random.default_rng(n)
    rows = rng.uniform(-1.5, 1.5, (SLOTS, len(COLUMNS))).astype(np.float32)
    x, outputs = rng.standard_normal((SLOTS, n)), scale * rng.standard_normal((6, n))
    return rows, x.astype(np.float32), outputs.astype(np.float32)


def passes(outputs, slot):
    """The predictions of a slot's step: (eps, eps_uncond)."""
    cond, uncond = ROW_COND[slot], ROW_UNCOND[slot]
    guided = cond >= 0 and uncond >= 0
    return outputs[cond if cond >= 0 else uncond], outputs[uncond] if guided else None


def core_row(row, x, eps, eps_uncond, **adaptive):
    return sf._core.adapted_row(row, sf._core.Adaptive(**adaptive), x, eps, eps_uncond)


@pytest.mark.parametrize("n", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rescaled_rows_are_the_reference(given, dtype, n):
    rows, x, outputs = random_inputs(n)
    phi = np.float32([0.7, 0.7, 0.7, 1.0, 0.7])
    prediction = given(outputs).to(getattr(torch, dtype))
    outputs = prediction.float().cpu().numpy()
    maps = given(ROW_COND, np.int32), given(ROW_UNCOND, np.int32)
    got = guidance_rescale(prediction, given(rows), given(phi), *maps).cpu().numpy()
    for i in range(SLOTS):
        eps, eps_uncond = passes(outputs, i)
        if eps_uncond is None or n == 1:  # one value has no deviation
            np.testing.assert_array_equal(got[i], rows[i])
        else:
            want = guidance_rescale_ref(eps, rows[i], phi[i], eps_uncond)
            np.testing.assert_allclose(got[i], want, rtol=tolerances.ADAPTED_ROW)
            by_core = core_row(rows[i], x[i], eps, eps_uncond, guidance_rescale=phi[i])
            np.testing.assert_allclose(got[i], by_core, rtol=tolerances.ADAPTED_ROW_ORDER)


#: phi, blend, eta and norm threshold of the slots of a launch, the guided ones first and fourth.
GUIDED = (
    [(0.7, "projected", 0.3, 2.0), *[(0.0, "projected", 0.0, 1.0)] * 2, (0.0, "projected", 1.0, 0.5)],
    [(0.0, "projected_clean", 0.0, 3.0), *[(0.0, "plain", 1.0, 0.0)] * 2, (0.4, "projected_clean", 0.5, 0.0)],
    [(0.0, "optimized_scale", 1.0, 0.0), *[(0.0, "projected_clean", 0.0, 1.0)] * 2, (0.7, "optimized_scale", 1.0, 0)],
    [(0.5, "plain", 1.0, 0.0), *[(0.0, "optimized_scale", 1.0, 0.0)] * 2, (0.0, "plain", 0.0, 1.0)],
)


@pytest.mark.parametrize("columns", [16, 32])
@pytest.mark.parametrize("n", [2, 111, 2049])
@pytest.mark.parametrize("ways", GUIDED, ids=["projected", "clean", "scale", "plain"])
def test_guided_rows_are_the_reference(given, ways, n, columns):
    rows, x, outputs = random_inputs(n)
    rows = np.pad(rows, ((0, 0), (0, columns - 16)), constant_values=0.5)
    ways = [*ways, (0.0, "projected", 0.0, 1.0)]
    guidance = [(phi, BLENDS.index(blend), eta, norm) for phi, blend, eta, norm in ways]
    maps = given(ROW_COND, np.int32), given(ROW_UNCOND, np.int32)
    got = adapt_guidance(given(x), given(outputs), given(rows), given(guidance), *maps).cpu().numpy()
    for i, (phi, blend, eta, norm) in enumerate(ways):
        eps, eps_uncond = passes(outputs, i)
        if eps_uncond is None:
            np.testing.assert_array_equal(got[i], rows[i])
            continue
        way = {"blend": blend, "eta": np.float32(eta), "norm_threshold": norm}
        want = adapt_guidance_ref(x[i], eps, rows[i], eps_uncond, phi=np.float32(phi), **way)
        np.testing.assert_allclose(got[i], want, rtol=tolerances.ADAPTED_ROW)
        by_core = core_row(rows[i], x[i], eps, eps_uncond, guidance_rescale=phi, **way)
        np.testing.assert_allclose(got[i], by_core, rtol=tolerances.ADAPTED_ROW_ORDER)


@pytest.mark.parametrize(
    ("rows", "guidance", "message"),
    [
        ((16,), (2, 4), r"rows must have shape \(B, 16\), got \(16,\)"),
        ((3, 16), (3, 4), "rows must be one for each of 2 slots, got 3"),
        ((2, 16), (2, 3), r"guidance must be float32 of shape \(B, 4\), got torch.float32 \(2, 3\)"),
    ],
)
def test_slots_and_their_rows_are_one_each(given, rows, guidance, message):
    state, maps = given(np.zeros((2, 8))), given(np.zeros(2), np.int32)
    with pytest.raises(ValueError, match=message):
        adapt_guidance(state, state, given(np.zeros(rows)), given(np.zeros(guidance)), maps, maps)


@pytest.mark.parametrize("blend", BLENDS)
def test_the_reference_s_row_makes_the_guided_prediction(blend):
    """Against the formulas as they are written down, on whole vectors."""
    rows, x, outputs = random_inputs(300)
    row, e_c, e_u, x = rows[0].astype(np.float64), *(one[0].astype(np.float64) for one in (outputs, outputs[1:], x))
    g, p_x, p_e = (row[COLUMNS.index(name)] for name in ("g", "p_x", "p_e"))
    of_cond, of_uncond = (p_x * x + p_e * one if blend == "projected_clean" else one for one in (e_c, e_u))
    update = (of_cond - of_uncond) * min(1.0, 4.0 / np.linalg.norm(of_cond - of_uncond))
    update -= (1 - 0.25) * of_cond * (update @ of_cond) / (of_cond @ of_cond)
    want = {
        "plain": e_u + g * (e_c - e_u),
        "projected": e_u + g * update,
        "projected_clean": (of_cond + (g - 1) * update - p_x * x) / p_e,
        "optimized_scale": g * e_c + (1 - g) * e_u * (e_c @ e_u) / (e_u @ e_u + 1e-8),
    }[blend]
    found = adapt_guidance_ref(x, e_c, row, e_u, blend=blend, eta=0.25, norm_threshold=4.0)
    e = e_u + found[COLUMNS.index("g")] * (e_c - e_u)
    for on_x, on_e in (("p_x", "p_e"), ("q_x", "q_e"), ("u_x", "u_e")):
        got = found[COLUMNS.index(on_x)] * x + found[COLUMNS.index(on_e)] * e
        plain = row[COLUMNS.index(on_x)] * x + row[COLUMNS.index(on_e)] * want
        np.testing.assert_allclose(got, plain, rtol=0, atol=1e-12 * np.abs(plain).max())


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, which the interpreter computes with
@pytest.mark.parametrize("phi", [0.0, 1.0])
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.5])
def test_what_has_no_deviation_is_left_to_the_step(given, value, phi):
    rows, _, outputs = random_inputs(300)
    outputs[1], outputs[0] = value, 0.25
    maps = given(ROW_COND, np.int32), given(ROW_UNCOND, np.int32)
    got = guidance_rescale(given(outputs), given(rows), given([phi] * SLOTS), *maps)
    np.testing.assert_array_equal(got[0].cpu().numpy(), rows[0])


@pytest.mark.parametrize("n", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(
    ("ratio", "largest"), [(0.995, 2.0), (0.5, np.inf), (1.0, np.inf), (0.9, 1.0), (1e-6, np.inf), (0.0, 2.0)]
)
def test_thresholded_rows_are_the_reference_and_the_core_to_the_bit(given, ratio, largest, n):
    rows, x, outputs = random_inputs(n, scale=3.0)
    x[1], outputs[2] = np.round(x[1]), np.round(outputs[2])  # ties
    maps = {"row_cond": given(ROW_COND, np.int32), "row_uncond": given(ROW_UNCOND, np.int32)}
    settings = given([ratio] * SLOTS), given([largest] * SLOTS)
    got = dynamic_threshold(given(x), given(outputs), given(rows), *settings, **maps).cpu().numpy()
    np.testing.assert_array_equal(got[-1], rows[-1])
    for i in range(SLOTS - 1):
        eps, eps_uncond = passes(outputs, i)
        by_core = core_row(rows[i], x[i], eps, eps_uncond, threshold_ratio=ratio, largest_threshold=largest)
        np.testing.assert_array_equal(got[i], by_core)
        if ratio:
            want = dynamic_threshold_ref(x[i], eps, rows[i], np.float32(ratio), largest, eps_uncond)
            np.testing.assert_allclose(got[i], want, rtol=tolerances.ADAPTED_ROW)
        else:
            np.testing.assert_array_equal(got[i], rows[i])


def test_many_tiles_are_one_sample(given):
    n = 2048 * 17 + 3  # more than the counts that are read at once
    rows, x, outputs = random_inputs(n, scale=3.0)
    maps = {"row_cond": given(ROW_COND, np.int32), "row_uncond": given(ROW_UNCOND, np.int32)}
    settings = given([0.995, 0.3, 0.0, 1.0, 0.5]), given([np.inf] * SLOTS)
    got = dynamic_threshold(given(x), given(outputs), given(rows), *settings, **maps).cpu().numpy()
    for i, ratio in enumerate((0.995, 0.3, 0.0, 1.0)):
        by_core = core_row(rows[i], x[i], *passes(outputs, i), threshold_ratio=ratio, largest_threshold=np.inf)
        np.testing.assert_array_equal(got[i], by_core)


@pytest.mark.parametrize("ratio", [0.01, 0.25, 1 / 3, 0.5, 0.75, 0.99, 1.0])
@pytest.mark.parametrize("d", [[3, 2, -2, 1], [2, 2, 2, 5], [-7, 7], [1, 2, 3, 4, 4, 5], [2, 0, -0.0, 0, 9]], ids=str)
def test_equal_values_each_count(given, d, ratio):
    x, row = np.float32([d]), sf.StepTable.from_columns({"p_x": 1.0})[0]
    one = given([ratio]), given([np.inf])
    got = dynamic_threshold(given(x), given(x), given(row), *one).cpu().numpy()
    threshold = max(1.0, np.quantile(np.abs(x.astype(np.float64)), np.float32(ratio)))
    assert got[0, COLUMNS.index("p_x")] == np.float32(1) / np.float32(threshold)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_left_to_the_step(given, value):
    rows, x, outputs = random_inputs(300)
    outputs[2, 299] = value
    maps = {"row_cond": given(ROW_COND, np.int32), "row_uncond": given(ROW_UNCOND, np.int32)}
    settings = given([0.9] * SLOTS), given([2.0] * SLOTS)
    got = dynamic_threshold(given(x), given(outputs), given(rows), *settings, **maps).cpu().numpy()
    np.testing.assert_array_equal(got[1], rows[1])
    assert got[0, COLUMNS.index("hi")] == 1


def test_a_row_for_all_may_be_thresholded(given):
    rows, x, outputs = random_inputs(50)
    settings = given([0.9] * SLOTS), given([2.0] * SLOTS)
    one = dynamic_threshold(given(x), given(outputs[:SLOTS]), given(rows[0]), *settings)
    many = dynamic_threshold(given(x), given(outputs[:SLOTS]), given(rows[[0] * SLOTS]), *settings)
    assert torch.equal(one, many)
