"""The fused step against its float64 oracle, on every instruction set."""

import itertools

import ml_dtypes
import numpy as np
import pytest
import tolerances

import stepfuse as sf
from stepfuse.kernels.reference import fused_step_ref, two_line_step_ref
from stepfuse.samplers.table import COLUMNS, SECOND_LINE

ISAS = sf._core.isas()
SIZES = {"one": 1, "below-a-vector": 3, "odd": 111, "odd-long": 989, "aligned": 4096, "large": (1 << 16) + 5}
TOLERANCES = {
    np.float32: tolerances.STEP_FLOAT32,
    np.float16: tolerances.STEP_FLOAT16,
    ml_dtypes.bfloat16: tolerances.STEP_BFLOAT16,
}
FEATURES = ("guided", "clip", "history", "noise")

each_isa = pytest.mark.parametrize("isa", ISAS)
each_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=["float32", "float16", "bfloat16"])


def row_of(**columns):
    return sf.StepTable.from_columns(columns)[0]


def random_row(rng, features):
    row = rng.uniform(-1.5, 1.5, len(COLUMNS))
    row[[COLUMNS.index("lo"), COLUMNS.index("hi")]] = (-0.6, 0.8) if "clip" in features else (-np.inf, np.inf)
    unused = [] if "history" in features else ["q_h", "u_x", "u_d", "u_e", "u_h"]
    unused += [] if "noise" in features else ["q_z"]
    row[[COLUMNS.index(name) for name in unused]] = 0
    return row.astype(np.float32)


def random_inputs(rng, shape, features, dtype=np.float32):
    """x, eps, and eps_uncond, h and z where the features ask for them."""
    wanted = {"x": True, "eps": True, "eps_uncond": "guided" in features, "h": "history" in features}
    wanted["z"] = "noise" in features
    return {name: rng.standard_normal(shape).astype(dtype) for name, needed in wanted.items() if needed}


def run(row, inputs, **options):
    """Next state and history; inputs are left as they are."""
    h = inputs["h"].copy() if "h" in inputs else None
    return sf.step(row=row, **{**inputs, "h": h}, **options), h


@each_dtype
@pytest.mark.parametrize("n", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(
    "features",
    [features for k in range(5) for features in itertools.combinations(FEATURES, k)],
    ids=lambda features: "+".join(features) or "plain",
)
def test_every_isa_is_the_reference_and_all_agree_to_the_bit(features, n, dtype):
    rng = np.random.default_rng(n)
    row, inputs = random_row(rng, features), random_inputs(rng, n, features, dtype)
    want, want_h, clean = fused_step_ref(row=row, **inputs)
    tolerance = TOLERANCES[dtype] * max(np.abs(term).max() for term in (want, want_h, clean, *inputs.values()))

    results = {isa: run(row, inputs, isa=isa) for isa in ISAS}
    got, got_h = results["portable"]
    assert got.dtype == dtype
    assert np.abs(got - want).max() <= tolerance
    if got_h is not None:
        assert np.abs(got_h - want_h).max() <= tolerance
    for other, other_h in results.values():
        np.testing.assert_array_equal(other, got)
        np.testing.assert_array_equal(other_h, got_h)


def random_lines(rng, features, without=()):
    second = rng.uniform(-1.5, 1.5, len(SECOND_LINE))
    unused = ["spare", *without] + ([] if "noise" in features else ["u_z"])
    second[[SECOND_LINE.index(name) for name in unused]] = 0
    return np.concatenate([random_row(rng, features), second.astype(np.float32)])


def run_lines(row, inputs, **options):
    """Next state and registers; inputs are left as they are."""
    registers = {name: inputs[name].copy() for name in ("h", "h2", "h3") if name in inputs}
    return sf.step(row=row, **{**inputs, **registers}, **options), *registers.values()


@each_dtype
@pytest.mark.parametrize("n", [3, 989, 4096])
@pytest.mark.parametrize(
    "features", [(), ("guided",), ("clip", "noise"), ("guided", "history", "noise"), FEATURES], ids="+".join
)
def test_a_second_line_is_the_reference_and_all_isas_agree_to_the_bit(features, n, dtype):
    rng = np.random.default_rng(n)
    row, inputs = random_lines(rng, features), random_inputs(rng, n, {*features, "history"}, dtype)
    inputs |= {name: rng.standard_normal(n).astype(dtype) for name in ("h2", "h3")}
    want = two_line_step_ref(row=row, **inputs)
    tolerance = TOLERANCES[dtype] * max(np.abs(term).max() for term in (*want, *inputs.values()))
    got = run_lines(row, inputs, isa="portable")
    for found, expected in zip(got, (want.x, want.h, want.h2, want.h3), strict=True):
        assert np.abs(found - expected).max() <= tolerance
    for isa in ISAS:
        for found, expected in zip(run_lines(row, inputs, isa=isa), got, strict=True):
            np.testing.assert_array_equal(found, expected)


@each_isa
def test_a_second_line_of_zeros_gives_the_bits_of_none(isa):
    rng = np.random.default_rng(5)
    inputs = random_inputs(rng, 989, FEATURES)
    rows = [random_row(rng, FEATURES) for _ in range(8)]
    for row in rows:
        for found, expected in zip(run(np.pad(row, (0, 16)), inputs, isa=isa), run(row, inputs, isa=isa), strict=True):
            np.testing.assert_array_equal(found, expected)


@each_isa
def test_registers_that_a_row_does_not_read_may_hold_anything(isa):
    x, eps = np.random.default_rng(6).standard_normal((2, 111)).astype(np.float32)
    registers = {name: np.full_like(x, np.nan) for name in ("h", "h2", "h3")}
    out = sf.step(x, eps, row_of(g=3.0, q_x=0.5, u_u=1.0, v_e=2.0), isa=isa, **registers)
    np.testing.assert_array_equal(out, np.float32(0.5) * x)
    for name, want in {"h": eps, "h2": 2 * eps, "h3": 0 * x}.items():
        np.testing.assert_array_equal(registers[name], want)


@each_isa
def test_each_sample_of_a_batch_may_have_its_own_lines(isa):
    rng = np.random.default_rng(7)
    inputs = random_inputs(rng, (5, 3, 37), FEATURES)
    inputs |= {name: rng.standard_normal((5, 3, 37)).astype(np.float32) for name in ("h2", "h3")}
    rows = np.stack([random_lines(rng, FEATURES) for _ in range(5)])
    got = run_lines(rows, inputs, isa=isa)
    for i, row in enumerate(rows):
        alone = run_lines(row, {name: values[i] for name, values in inputs.items()}, isa=isa)
        for found, expected in zip(got, alone, strict=True):
            np.testing.assert_array_equal(found[i], expected)


@each_isa
@each_dtype
def test_each_sample_of_a_batch_may_have_its_own_row(dtype, isa):
    rng = np.random.default_rng(0)
    inputs = random_inputs(rng, (5, 3, 37), FEATURES, dtype)
    rows = np.stack([random_row(rng, FEATURES) for _ in range(5)])
    got, got_h = run(rows, inputs, isa=isa)
    for i, row in enumerate(rows):
        alone, alone_h = run(row, {name: values[i] for name, values in inputs.items()}, isa=isa)
        np.testing.assert_array_equal(got[i], alone)
        np.testing.assert_array_equal(got_h[i], alone_h)


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda a: a[:, ::2], id="every-second"),
        pytest.param(lambda a: a[:, ::-1], id="backwards"),
        pytest.param(lambda a: a.T, id="transposed"),
        pytest.param(lambda a: np.broadcast_to(a[:1], a.shape), id="broadcast"),
    ],
)
def test_strided_inputs_are_read_as_they_look(view):
    rng = np.random.default_rng(1)
    row = random_row(rng, FEATURES)
    strided = {name: view(values) for name, values in random_inputs(rng, (22, 30), FEATURES).items()}
    solid = {name: np.ascontiguousarray(values) for name, values in strided.items()}
    got, _ = run(row, {**strided, "h": solid["h"]})
    np.testing.assert_array_equal(got, run(row, solid)[0])


def test_result_goes_where_it_is_asked_to():
    rng = np.random.default_rng(2)
    row, inputs = random_row(rng, ()), random_inputs(rng, (4, 50), ())
    want, _ = run(row, inputs)
    assert not any(np.shares_memory(want, given) for given in inputs.values())

    out = np.empty_like(want)
    assert run(row, inputs, out=out)[0] is out
    np.testing.assert_array_equal(out, want)

    x = inputs["x"].copy()
    assert sf.step(x, inputs["eps"], row, out=x) is x
    np.testing.assert_array_equal(x, want)


@each_isa
def test_history_is_left_unread_by_rows_that_do_not_read_it(isa):
    rng = np.random.default_rng(3)
    x, eps = rng.standard_normal((2, 111)).astype(np.float32)
    h = np.full_like(x, np.nan)
    out = sf.step(x, eps, row_of(q_x=0.5, q_d=1.0, p_x=1.0, u_d=1.0), h=h, isa=isa)
    np.testing.assert_allclose(out, 1.5 * x, rtol=1e-6)
    np.testing.assert_array_equal(h, x)


@each_isa
@each_dtype
def test_nan_passes_through_the_clamp(dtype, isa):
    x = np.zeros(37, dtype)  # vectors and a remainder on every set
    x[[0, 20, 36]] = 8.0  # infinity less infinity, of finite inputs: nothing but d shows it
    got = sf.step(x, x, row_of(p_x=3e38, p_e=-3e38, lo=-1.0, hi=2.0, q_d=1.0), isa=isa)
    np.testing.assert_array_equal(got.astype(np.float32), np.where(x == 8, np.nan, 0))


def array(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def read_only(a):
    a.flags.writeable = False
    return a


PLAIN = row_of(q_x=1.0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param({"x": [[0.0] * 6] * 4}, TypeError, "x must be a numpy array, got list", id="list"),
        pytest.param({"x": array(4, 6, dtype=float)}, TypeError, "float16 or bfloat16, got float64", id="float64"),
        pytest.param({"x": array(4, 6, dtype=int)}, TypeError, "float16 or bfloat16, got int64", id="integers"),
        pytest.param({"x": array(4, 6, dtype=">f4")}, TypeError, "float16 or bfloat16, got >f4", id="byte-swapped"),
        pytest.param({"eps": array(4, 6, dtype=">f4")}, TypeError, "eps must .* float32, got >f4", id="eps-swapped"),
        pytest.param({"eps": array(4, 6, dtype=np.float16)}, TypeError, "eps must .* float32, got float16", id="mixed"),
        pytest.param({"eps": None}, TypeError, "eps must be a numpy array, got NoneType", id="no-eps"),
        pytest.param({"eps": array(4, 5)}, ValueError, r"eps must .* \(4, 6\), got \(4, 5\)", id="eps-shape"),
        pytest.param({"eps": array(24)}, ValueError, r"eps must .* \(4, 6\), got \(24,\)", id="eps-flat"),
        pytest.param({"eps_uncond": array(1, 6)}, ValueError, r"eps_uncond must .*, got \(1, 6\)", id="uncond-shape"),
        pytest.param({"z": array(4, 7)}, ValueError, r"z must .*, got \(4, 7\)", id="z-shape"),
        pytest.param({"h": array(6, 4)}, ValueError, r"h must .*, got \(6, 4\)", id="h-shape"),
        pytest.param({"h": array(6, 4).T}, ValueError, "h is written in place: .* C-contiguous", id="h-strided"),
        pytest.param(
            {"out": array(4, 12)[:, ::2]}, ValueError, "out is written in place: .* C-contig", id="out-strided"
        ),
        pytest.param(
            {"out": read_only(array(4, 6))}, ValueError, "out is written in place: .* writeable", id="out-locked"
        ),
        pytest.param({"out": array(4, 5)}, ValueError, r"out must .*, got \(4, 5\)", id="out-shape"),
        pytest.param({"row": array(15)}, ValueError, r"row must have shape \(16,\).*, got \(15,\)", id="short-row"),
        pytest.param(
            {"row": array(3, 16)}, ValueError, r"row must .*, got \(3, 16\) for x \(4, 6\)", id="rows-per-sample"
        ),
        pytest.param({"row": "abc"}, TypeError, "row must be an array of numbers, got 'abc'", id="text-row"),
        pytest.param({"row": row_of(q_h=0.5)}, ValueError, r"uses history \(q_h = 0.5\d*\): pass h", id="reads-h"),
        pytest.param({"row": row_of(u_d=1.0)}, ValueError, "uses history .*: pass h", id="keeps-h"),
        pytest.param({"row": row_of(q_h2=0.5)}, ValueError, "uses history .*: pass h,", id="reads-h2"),
        pytest.param({"row": row_of(v_e=0.5), "h": array(4, 6)}, ValueError, "uses .*: pass h2,", id="keeps-h2"),
        pytest.param(
            {"row": row_of(w_h=0.5), "h": array(4, 6), "h2": array(4, 6)}, ValueError, "pass h3,", id="keeps-h3"
        ),
        pytest.param({"row": row_of(u_z=0.5), "h": array(4, 6)}, ValueError, "adds noise .*: pass z", id="keeps-z"),
        pytest.param({"row": array(31)}, ValueError, r"\(16,\) or \(32,\).*, got \(31,\)", id="short-lines"),
        pytest.param({"h2": array(4, 7)}, ValueError, r"h2 must .*, got \(4, 7\)", id="h2-shape"),
        pytest.param({"row": row_of(q_z=0.5)}, ValueError, r"adds noise \(q_z = 0.5\d*\): pass z", id="needs-z"),
        pytest.param({"isa": "sse9"}, ValueError, r"isa must be one .*\(portable.*\), got 'sse9'", id="isa"),
    ],
)
def test_refuses(change, error, message):
    with pytest.raises(error, match=message):
        sf.step(**{"x": array(4, 6), "eps": array(4, 6), "row": PLAIN, **change})


@pytest.mark.parametrize(
    "arrays",
    [
        pytest.param(lambda b: {"x": b[:64], "out": b[1:65]}, id="out-over-x"),
        pytest.param(lambda b: {"eps": b[:64], "h": b[8:72]}, id="h-over-eps"),
        pytest.param(lambda b: {"z": b[:64], "out": b[63:127]}, id="out-over-z"),
        pytest.param(lambda b: {"h": b[:64], "out": b[:64]}, id="h-is-out"),
        pytest.param(lambda b: {"h": b[:64], "h2": b[:64]}, id="h2-is-h"),
        pytest.param(lambda b: {"x": b[:64], "h3": b[1:65]}, id="h3-over-x"),
    ],
)
def test_refuses_to_write_over_what_is_still_to_be_read(arrays):
    apart = {name: np.zeros(64, np.float32) for name in ("x", "eps")}
    with pytest.raises(ValueError, match=r"apart from it|two arrays"):
        sf.step(row=PLAIN, **{**apart, **arrays(np.zeros(128, np.float32))})
