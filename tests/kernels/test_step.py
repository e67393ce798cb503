"""The fused step in Triton: against its float64 oracle, and against the compiled CPU kernel to the bit."""

import itertools

import ml_dtypes
import numpy as np
import pytest
import tolerances

import stepfuse as sf
from stepfuse.kernels import fused_step, fused_step_ref
from stepfuse.kernels.configs import ALIGNED_LAYOUTS, ANY_LAYOUT, LARGE, Config
from stepfuse.samplers.noise import normal_oracle
from stepfuse.samplers.table import COLUMNS, SECOND_LINE

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed: it comes for x86-64 Linux")

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
#: Dtypes of the state and of the network: the state of a half-precision network may be float32.
STORAGE = {
    "float32": ("float32", "float32"),
    "float16": ("float16", "float16"),
    "bfloat16": ("bfloat16", "bfloat16"),
    "float32+float16": ("float32", "float16"),
    "float32+bfloat16": ("float32", "bfloat16"),
}
TOLERANCES = {
    "float32": tolerances.STEP_FLOAT32,
    "float16": tolerances.STEP_FLOAT16,
    "bfloat16": tolerances.STEP_BFLOAT16,
}
LAYOUTS = {**ALIGNED_LAYOUTS, **ANY_LAYOUT}
#: Every size in float32; in the other dtypes, which take the same path, the sizes that are not whole vectors.
SIZES = {"one": 1, "below-a-vector": 3, "odd": 111, "odd-long": 989, "aligned": 1024, "one-more": 4097}
CASES = [
    pytest.param(storage, n, id=f"{name}-{size}")
    for (name, storage), (size, n) in itertools.product(STORAGE.items(), SIZES.items())
    if name == "float32" or size in ("one", "odd", "one-more")
]
#: The interpreter computes with numpy, which warns of the values that these tests are about.
not_finite = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

SEEDS = (0, 7, 7 + (1 << 32), (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1, 2)
LAST = (1 << 32) - 1  # the largest step number

# Eight slots that share a forward of 13 rows: every combination of guided, clamped and with a history. The last of the
# unguided ones reads its unconditional row alone. A ninth slot reads none.
SLOTS = tuple(itertools.product((True, False), repeat=3))
ROW_COND = (4, 0, 2, 8, 6, 10, 11, -1, -1)
ROW_UNCOND = (5, 1, 3, 9, -1, -1, -1, 12, -1)
ROWS = 14  # no slot reads row 7
NEXT_COND = (3, -1, 0, 1, -1, 5, -1, 6, 2)
NEXT_UNCOND = (-1, 4, 9, 2, -1, -1, -1, -1, 8)
NEXT_ROWS = 11


def column(name):
    return COLUMNS.index(name)


def random_row(rng, *, clamped=False, history=False, noise=False):
    row = rng.uniform(-1.5, 1.5, len(COLUMNS))
    row[[column("lo"), column("hi")]] = (-0.6, 0.8) if clamped else (-np.inf, np.inf)
    row[column("t")] = rng.uniform(0, 999)
    unused = [] if history else ["q_h", "u_x", "u_d", "u_e", "u_h"]
    unused += [] if noise else ["q_z"]
    row[[column(name) for name in unused]] = 0
    return row.astype(np.float32)


def row_of(**columns):
    return sf.StepTable.from_columns(columns)[0]


class Given:
    """Tensors of a launch, from numpy arrays and back."""

    def __init__(self, device):
        self.device = device

    def __call__(self, array):
        if array.dtype == ml_dtypes.bfloat16:
            return self(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array.copy()).to(self.device)

    def ints(self, values):
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def seeds(self, values):
        return torch.from_numpy(np.array(values, np.uint64).view(np.int64)).to(self.device)


def array(tensor):
    tensor = tensor.cpu()
    return (
        tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if tensor.dtype == torch.bfloat16 else tensor.numpy()
    )


@pytest.fixture
def given(device):
    return Given(device)


def same_bits(got, want):
    assert got.dtype == want.dtype
    got, want = (values.view(f"u{values.itemsize}") for values in (got, want))
    np.testing.assert_array_equal(got, want)


def cpu_step(row, x, outputs, slot, h, z):
    """The compiled CPU kernel on one slot, in float32; widening is exact, so only the store may round."""
    cond, uncond = ROW_COND[slot], ROW_UNCOND[slot]
    eps = outputs[cond if cond >= 0 else uncond]
    eps_uncond = outputs[uncond] if cond >= 0 and uncond >= 0 else None
    return sf.step(x, eps, row, eps_uncond=eps_uncond, h=h, z=z)


@pytest.mark.parametrize("noise", ["none", "given", "made"])
@pytest.mark.parametrize(("storage", "n"), CASES)
def test_slots_of_all_kinds_are_the_reference_and_the_cpu_to_the_bit(given, storage, n, noise):
    rng = np.random.default_rng(n)
    state_type, network_type = (DTYPES[name] for name in storage)
    slots = len(ROW_COND)
    rows = np.stack([random_row(rng, clamped=c, history=h, noise=noise != "none") for _, c, h in (*SLOTS, SLOTS[0])])
    next_rows = np.stack([random_row(rng) for _ in range(slots)])
    x, h, z = (rng.standard_normal((slots, n)).astype(state_type) for _ in range(3))
    outputs = rng.standard_normal((ROWS, n)).astype(network_type)
    steps = [0, 1, 999, LAST, 5, 6, 7, 8, 9]
    into = {
        "h": given(h),
        "x0": given(np.full((slots, n), 77, state_type)),
        "next_input": given(np.full((NEXT_ROWS, n), 77, network_type)),
        "next_timestep": given(np.full(NEXT_ROWS, 77, np.float32)),
        "nonfinite": given.ints([0] * slots),
    }
    if noise == "given":
        into["z"] = given(z)
    elif noise == "made":
        into["seed"] = given.seeds((*SEEDS, 3))
        into["step"] = given(np.array(steps, np.uint32).view(np.int32))
    out = fused_step(
        given(x),
        given(outputs),
        given(rows),
        row_cond=given.ints(ROW_COND),
        row_uncond=given.ints(ROW_UNCOND),
        next_rows=given(next_rows),
        next_cond=given.ints(NEXT_COND),
        next_uncond=given.ints(NEXT_UNCOND),
        out=given(np.full((slots, n), 77, state_type)),
        config=LARGE,  # few programs: each is slow in the interpreter
        **into,
    )
    got, got_h, got_x0 = array(out), array(into["h"]), array(into["x0"])
    next_input, next_timestep = array(into["next_input"]), array(into["next_timestep"])

    expected_input = np.full((NEXT_ROWS, n), 77, network_type)
    expected_timestep = np.full(NEXT_ROWS, 77, np.float32)
    for i, (guided, _, history) in enumerate(SLOTS):
        wide, wide_h = x[i].astype(np.float32), h[i].astype(np.float32)
        own = {"none": None, "given": z[i].astype(np.float32)}.get(noise)
        if noise == "made":
            own = sf.normal(SEEDS[i], (n,), step=steps[i], stream=1)
        following = cpu_step(rows[i], wide, outputs.astype(np.float32), i, wide_h if history else None, own)
        same_bits(got[i], following.astype(state_type))
        same_bits(got_h[i], wide_h.astype(state_type) if history else h[i])

        eps, eps_uncond = outputs[max(ROW_COND[i], ROW_UNCOND[i] * (ROW_COND[i] < 0))], None
        if guided:
            eps, eps_uncond = outputs[ROW_COND[i]], outputs[ROW_UNCOND[i]]
        want, want_h, clean = fused_step_ref(x[i], eps, rows[i], eps_uncond, h[i], own)
        tolerance = TOLERANCES[storage[0]] * max(np.abs(term).max() for term in (want, want_h, clean, x[i], outputs))
        assert np.abs(got[i] - want).max() <= tolerance
        assert np.abs(got_x0[i] - clean).max() <= tolerance
        for to in {NEXT_COND[i], NEXT_UNCOND[i]} - {-1}:
            expected_input[to] = (next_rows[i, column("s")] * following).astype(network_type)
            expected_timestep[to] = next_rows[i, column("t")]

    same_bits(next_input, expected_input)
    np.testing.assert_array_equal(next_timestep, expected_timestep)
    for untouched, before in ((got, 77), (got_x0, 77), (got_h, h[-1])):
        np.testing.assert_array_equal(untouched[-1], before)
    assert into["nonfinite"].tolist() == [0] * slots


@pytest.mark.parametrize("noise", ["none", "given", "made"])
@pytest.mark.parametrize(("storage", "n"), [(STORAGE["float32"], 111), (STORAGE["float32+float16"], 1024)])
def test_second_lines_are_the_cpus_to_the_bit(given, storage, n, noise):
    rng = np.random.default_rng(n)
    state_type, network_type = (DTYPES[name] for name in storage)
    slots = len(SLOTS)
    second = rng.uniform(-1.5, 1.5, (slots, len(SECOND_LINE))).astype(np.float32)
    unused = [SECOND_LINE.index(name) for name in ("spare", *(() if noise != "none" else ("u_z",)))]
    second[:, unused] = 0
    second[3:6] = 0  # of one line
    second[6, SECOND_LINE.index("v_h2")] = second[6, SECOND_LINE.index("w_h3")] = 0
    rows = np.stack([random_row(rng, clamped=c, history=h, noise=noise != "none") for _, c, h in SLOTS])
    rows = np.concatenate([rows, second], axis=1)
    x, h, h2, h3, z = (rng.standard_normal((slots, n)).astype(state_type) for _ in range(5))
    outputs = rng.standard_normal((ROWS, n)).astype(network_type)
    into = {name: given(values) for name, values in {"h": h, "h2": h2, "h3": h3}.items()}
    if noise == "given":
        into["z"] = given(z)
    elif noise == "made":
        into |= {"seed": given.seeds(SEEDS), "step": given.ints(range(slots))}
    maps = {"row_cond": given.ints(ROW_COND[:slots]), "row_uncond": given.ints(ROW_UNCOND[:slots])}
    out = fused_step(given(x), given(outputs), given(rows), **maps, **into, config=LARGE)
    for i in range(slots):
        own = {"none": None, "given": z[i]}.get(noise)
        if noise == "made":
            own = sf.normal(SEEDS[i], (n,), step=i, stream=1)
        kept = {name: values[i].copy() for name, values in {"h": h, "h2": h2, "h3": h3}.items()}
        cond, uncond = ROW_COND[i], ROW_UNCOND[i]
        wide = outputs.astype(np.float32)
        eps, eps_uncond = wide[cond if cond >= 0 else uncond], wide[uncond] if min(cond, uncond) >= 0 else None
        same_bits(array(out)[i], sf.step(x[i], eps, rows[i], eps_uncond=eps_uncond, z=own, **kept))
        uses = sf.StepTable(rows[i : i + 1]).registers
        for index, name in enumerate(kept):  # what the row does not use is left alone
            same_bits(array(into[name])[i], kept[name] if index < uses else {"h": h, "h2": h2, "h3": h3}[name][i])


@pytest.mark.parametrize("config", LAYOUTS.values(), ids=LAYOUTS)
def test_results_do_not_depend_on_the_configuration(given, config):
    rng = np.random.default_rng(0)
    x, eps = rng.standard_normal((2, 2, 1501)).astype(np.float32)
    rows = np.stack([random_row(rng, noise=True, history=True) for _ in range(2)])
    keys = {"seed": given.seeds([5, 6]), "step": given.ints([1, 2])}
    want, got = ({"h": given(eps)} for _ in range(2))
    first = fused_step(given(x), given(eps), given(rows), **want, **keys, config=Config(128, 1))
    second = fused_step(given(x), given(eps), given(rows), **got, **keys, config=config)
    same_bits(array(second), array(first))
    same_bits(array(got["h"]), array(want["h"]))


def schedule_of(name):
    if name in ("edm_euler", "edm_dpmpp_2m", "cm"):
        return sf.NoiseSchedule.edm()
    return sf.NoiseSchedule.flow() if name == "euler" else sf.NoiseSchedule.linear()


@pytest.mark.parametrize("name", sf.samplers.SAMPLERS)
def test_every_sampler_steps_as_on_the_cpu(given, name):
    schedule = schedule_of(name)
    with pytest.warns() if name == "ddpm_strided" else pytest.MonkeyPatch.context():
        table = sf.samplers.SAMPLERS[name](schedule, steps=4, guidance_scale=3.0)
    shape, seeds = (2, 3, 7), (11, 12)
    x = np.stack([sf.normal(seed, shape) for seed in seeds]) * np.float32(table.init_scale)
    count = 3 if table.has_second_line else table.registers
    registers = {name: np.zeros_like(x) for name in ("h", "h2", "h3")[:count]}
    state, history = given(x), {name: given(values) for name, values in registers.items()}
    for step, row in enumerate(table):
        outputs = np.random.default_rng(step).standard_normal((4, *shape)).astype(np.float32)
        z = np.stack([sf.normal(seed, shape, step=step, stream=1) for seed in seeds])
        x = sf.step(x, outputs[:2], row, eps_uncond=outputs[2:], z=z, **registers)
        fused_step(
            state,
            given(outputs),
            given(row),
            row_cond=given.ints([0, 1]),
            row_uncond=given.ints([2, 3]),
            seed=given.seeds(seeds),
            step=given.ints([step, step]),
            out=state,
            **history,
        )
        np.testing.assert_array_equal(array(state), x)


@pytest.mark.parametrize("name", sf.samplers.SAMPLERS)
def test_no_sampler_reads_a_history_that_the_row_before_left_alone(name):
    # Where a row uses no history the kernel leaves it alone, and the formulas set it to 0: the same unless it is read.
    schedule = schedule_of(name)
    with pytest.warns() if name == "ddpm_strided" else pytest.MonkeyPatch.context():
        table = sf.samplers.SAMPLERS[name](schedule, steps=10)
    names, letters = COLUMNS + SECOND_LINE, {"x": "q", "h": "u", "h2": "v", "h3": "w"}
    for register, letter in list(letters.items())[1:]:
        reads = np.any([table[f"{one}_{register}"] for one in letters.values() if f"{one}_{register}" in names], axis=0)
        keeps = np.any([table[name] for name in names if name.startswith(f"{letter}_")], axis=0)
        assert not reads[0]
        assert not (reads[1:] & ~keeps[:-1]).any()


@pytest.mark.parametrize("seed", SEEDS)
def test_noise_is_the_engine_s_to_the_bit_and_the_oracle_s_to_rounding(given, seed):
    n, steps = 4097, (0, 3, LAST)
    x = given(np.zeros((len(steps), n), np.float32))
    step = given(np.array(steps, np.uint32).view(np.int32))
    got = array(
        fused_step(x, x, given(row_of(q_z=1.0)), seed=given.seeds([seed] * len(steps)), step=step, config=LARGE)
    )
    for i, number in enumerate(steps):
        np.testing.assert_array_equal(got[i], sf.normal(seed, (n,), step=number, stream=1))
        want = normal_oracle(seed, (n,), step=number, stream=1)
        np.testing.assert_allclose(got[i], want, rtol=0, atol=tolerances.NOISE)


@not_finite
@pytest.mark.parametrize("storage", DTYPES.values(), ids=DTYPES)
def test_nan_passes_through_the_clamp_and_is_reported(given, storage):
    x = np.zeros((3, 300), storage)
    x[1, [0, 200, 299]] = 8.0  # infinity less infinity, of finite inputs: nothing but d shows it
    row = row_of(p_x=3e38, p_e=-3e38, lo=-1.0, hi=2.0, q_d=1.0)
    nonfinite = given.ints([0, 0, 0])
    got = array(fused_step(given(x), given(x), given(row), nonfinite=nonfinite))
    np.testing.assert_array_equal(got.astype(np.float32), np.where(x == 8, np.nan, 0))
    assert nonfinite.tolist() == [0, 1, 0]


@not_finite
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_prediction_that_is_not_finite_is_reported_even_if_nothing_of_it_is_left(given, value):
    x = np.zeros((3, 2000), np.float32)
    eps = x.copy()
    eps[1, 1999] = value
    nonfinite = given.ints([0, 0, 0])
    out = fused_step(given(x), given(eps), given(row_of(p_e=1.0, lo=-1, hi=1, q_x=1.0)), nonfinite=nonfinite)
    assert nonfinite.tolist() == [0, 1, 0]
    assert np.isnan(array(out)[1, 1999])  # 0 times it


def test_history_is_left_unread_by_rows_that_do_not_read_it(given):
    x = np.random.default_rng(3).standard_normal((2, 111)).astype(np.float32)
    h = given(np.full_like(x, np.nan))
    rows = np.stack([row_of(q_x=0.5, q_d=1.0, p_x=1.0, u_d=1.0), row_of(q_x=2.0)])
    out = array(fused_step(given(x), given(x), given(rows), h=h))
    np.testing.assert_allclose(out, x * [[1.5], [2.0]], rtol=1e-6)
    np.testing.assert_array_equal(array(h), [x[0], np.full(111, np.nan)])


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda a: a[:, ::2], id="every-second-sample-part"),
        pytest.param(lambda a: a[:, :3], id="slice-of-channels"),  # of a network that predicts its variance too
        pytest.param(lambda a: a.transpose(-1, -2), id="transposed"),
        pytest.param(lambda a: a.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), id="channels-last"),
        pytest.param(lambda a: a[:1].expand(a.shape), id="broadcast"),
    ],
)
def test_strided_inputs_are_read_as_they_look(given, view):
    rng = np.random.default_rng(1)
    row = given(random_row(rng, noise=True))
    x, eps, z = (view(given(rng.standard_normal((2, 6, 4, 5)).astype(np.float32))) for _ in range(3))
    got = fused_step(x, eps, row, z=z)
    assert got.is_contiguous()
    same_bits(array(got), array(fused_step(x.contiguous(), eps.contiguous(), row, z=z.contiguous())))


def test_what_is_written_may_be_a_slice(given):
    # The input of an inpainting network: four channels of state among nine.
    rng = np.random.default_rng(2)
    x, eps = rng.standard_normal((2, 2, 4, 3, 3)).astype(np.float32)
    wide, out = given(np.full((2, 9, 3, 3), 77, np.float32)), given(np.zeros((2, 5, 3, 3), np.float32))
    row = random_row(rng)
    following = {"next_rows": given(row), "next_cond": given.ints([1, 0]), "next_uncond": given.ints([-1, -1])}
    want = array(fused_step(given(x), given(eps), given(row)))
    got = fused_step(given(x), given(eps), given(row), out=out[:, :4], next_input=wide[:, :4], **following)
    same_bits(np.ascontiguousarray(array(got)), want)
    same_bits(np.ascontiguousarray(array(wide)[:, :4]), row[column("s")] * want[::-1])
    assert (array(wide)[:, 4:] == 77).all()


@pytest.mark.parametrize(("t", "whole"), [(0.0, 0), (0.5, 0), (1.5, 2), (998.5, 998), (998.51, 999), (999.0, 999)])
def test_integer_timesteps_are_rounded_as_the_core_does(given, t, whole):
    timestep = torch.full((2,), -1, dtype=torch.int64, device=given.device)
    fused_step(
        *(given(np.zeros((1, 8), np.float32)) for _ in range(2)),
        given(row_of(q_x=1.0)),
        next_input=given(np.zeros((2, 8), np.float32)),
        next_rows=given(row_of(t=t)),
        next_cond=given.ints([-1]),
        next_uncond=given.ints([1]),
        next_timestep=timestep,
    )
    assert timestep.tolist() == [-1, whole]


@pytest.mark.parametrize(
    ("row", "change"),
    [
        pytest.param({"q_h": 0.5}, {}, id="reads-h"),
        pytest.param({"u_d": 0.5}, {}, id="keeps-h"),
        pytest.param({"q_z": 0.5}, {}, id="needs-z"),
        pytest.param({}, {"row_cond": [0, 2]}, id="cond-behind-the-end"),
        pytest.param({}, {"row_cond": [0, 1], "row_uncond": [-1, 2]}, id="uncond-behind-the-end"),
        pytest.param({}, {"next_cond": [0, 3]}, id="next-behind-the-end"),
    ],
)
def test_what_only_the_device_can_see_comes_out_as_nan(given, row, change):
    rows = np.stack([row_of(q_x=1.0), row_of(q_x=1.0, **row)])
    x = np.ones((2, 8), np.float32)
    arguments = {name: given.ints(values) for name, values in change.items()}
    if "next_cond" in change:
        arguments |= {"next_input": given(np.zeros((3, 8), np.float32)), "next_rows": given(rows)}
        arguments["next_uncond"] = given.ints([-1, -1])
    nonfinite = given.ints([0, 0])
    got = array(fused_step(given(x), given(x), given(rows), nonfinite=nonfinite, **arguments))
    np.testing.assert_array_equal(got, [[1.0] * 8, [np.nan] * 8])
    assert nonfinite.tolist() == [0, 1]


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
def test_nothing_to_step_is_no_error(given, shape):
    x = given(np.zeros(shape, np.float32))
    assert fused_step(x, x, given(row_of(q_x=1.0))).shape == shape
