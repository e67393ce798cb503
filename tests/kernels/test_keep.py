"""The known region of inpainting, in Triton: against its float64 oracle, the CPU's bits, and an engine's whole runs."""

import itertools

import ml_dtypes
import numpy as np
import pytest
import support
import tolerances

import stepfuse as sf
from stepfuse.kernels import fused_step, keep_known, keep_known_ref
from stepfuse.requests.resolution import Compiler
from stepfuse.samplers.table import COLUMNS

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed: it comes for x86-64 Linux")

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
TOLERANCES = {
    "float32": tolerances.STEP_FLOAT32,
    "float16": tolerances.STEP_FLOAT16,
    "bfloat16": tolerances.STEP_BFLOAT16,
}
#: One element, fewer than a vector, no multiple of one, a tile and one more, and whole tiles.
SIZES = (1, 3, 111, 513, 1024)
#: Slots: a guided one, one without a known region, one with either row alone (one ends here), one that is not stepped,
#: and a guided one whose next step is not. Two share a known image, as samples of one request do.
ROW_COND, ROW_UNCOND = (0, 1, 2, -1, -1, 3), (5, 6, -1, 4, -1, 7)
KNOWN_ROW = (2, -1, 0, 0, 1, 1)
NEXT_COND, NEXT_UNCOND = (3, 0, 1, -1, 6, -1), (4, -1, -1, -1, -1, 2)
KEEPS = (0, 2, 3, 5)
SLOTS, KNOWN, NEXT_ROWS = len(ROW_COND), 3, 8
S = COLUMNS.index("s")


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

    def maps(self):
        maps = {"row_cond": ROW_COND, "row_uncond": ROW_UNCOND, "next_cond": NEXT_COND, "next_uncond": NEXT_UNCOND}
        return {name: self.ints(values) for name, values in maps.items()}


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
    np.testing.assert_array_equal(*(values.view(f"u{values.itemsize}") for values in (got, want)))


def random_known(rng, n):
    """Images, masks (known, sampled and between) and noise."""
    known = rng.standard_normal((KNOWN, 3, n)).astype(np.float32)
    known[:, 1] = np.clip(rng.uniform(-1, 2, (KNOWN, n)), 0, 1)
    return known


def by_numpy(known, level, x, x0):
    """The operations of known.cpp in its order, each rounded to float32."""
    image, mask, noise = known
    one = np.float32(1)
    kept = level[0] * image + level[1] * noise
    return mask * x + (one - mask) * kept, mask * x0 + (one - mask) * image


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(
    ("state", "network"), [("float32", name) for name in DTYPES] + [("float16", "float16"), ("bfloat16", "bfloat16")]
)
def test_slots_of_all_kinds_are_the_reference_and_the_core_s_bits(given, state, network, n):
    rng = np.random.default_rng(n)
    state_type, network_type = DTYPES[state], DTYPES[network]
    known, levels = random_known(rng, n), rng.uniform(0, 1.5, (SLOTS, 2)).astype(np.float32)
    x, x0 = rng.standard_normal((2, SLOTS, n)).astype(state_type)
    next_rows = rng.uniform(-1.5, 1.5, (SLOTS, len(COLUMNS))).astype(np.float32)
    into = {"x0": given(x0), "next_input": given(np.full((NEXT_ROWS, n), 77, network_type))}
    written = given(x)
    out = keep_known(
        written,
        given(known),
        given.ints(KNOWN_ROW),
        given(levels),
        next_rows=given(next_rows),
        **given.maps(),
        **into,
    )
    assert out is written

    want, clean, inputs = x.copy(), x0.copy(), np.full((NEXT_ROWS, n), 77, network_type)
    for slot in KEEPS:
        own, wide, wide_x0 = known[KNOWN_ROW[slot]], x[slot].astype(np.float32), x0[slot].astype(np.float32)
        new, new_x0 = by_numpy(own, levels[slot], wide, wide_x0)
        want[slot], clean[slot] = new.astype(state_type), new_x0.astype(state_type)
        for to in {NEXT_COND[slot], NEXT_UNCOND[slot]} - {-1}:
            inputs[to] = (next_rows[slot, S] * new).astype(network_type)
        exact = keep_known_ref(wide, own, levels[slot], wide_x0)
        for got, right in zip((array(out), array(into["x0"])), exact, strict=True):
            largest = max(np.abs(right).max(), np.abs(own).max())
            assert np.abs(got[slot].astype(np.float64) - right).max() <= TOLERANCES[state] * largest
    same_bits(array(out), want)
    same_bits(array(into["x0"]), clean)
    same_bits(array(into["next_input"]), inputs)


@pytest.mark.parametrize("x0", [False, True])
def test_without_a_preview_a_next_forward_or_maps_the_state_is_the_same(given, x0):
    n = 111
    rng = np.random.default_rng(1)
    known, x = random_known(rng, n), rng.standard_normal((2, n)).astype(np.float32)
    levels = np.float32([[0.25, 0.5], [1, 0]])
    arguments = {"x0": given(np.zeros_like(x))} if x0 else {}
    got = keep_known(given(x), given(known), given.ints([2, 0]), given(levels), **arguments)
    for slot, row in enumerate((2, 0)):
        same_bits(array(got)[slot], by_numpy(known[row], levels[slot], x[slot], x[slot])[0])


def test_a_mask_of_ones_or_zeros_gives_back_bits(given):
    rng = np.random.default_rng(2)
    x, image, noise = rng.standard_normal((3, 2, 300)).astype(np.float32)
    known = np.stack([image, np.float32([[1]] * 2) * np.ones_like(x), noise], axis=1)
    levels = given(np.float32([[1, 0]] * 2))
    same_bits(array(keep_known(given(x), given(known), given.ints([0, 1]), levels)), x)
    known[:, 1] = 0
    same_bits(array(keep_known(given(x), given(known), given.ints([0, 1]), levels)), image)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, which the interpreter computes with
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_state_that_is_not_finite_stays_so_where_it_is_kept_too(given, value):
    x = np.full((1, 5), value, np.float32)
    known = np.zeros((1, 3, 5), np.float32)
    assert np.isnan(
        array(keep_known(given(x), given(known), given.ints([0]), given(np.ones((1, 2), np.float32))))
    ).all()


def test_samples_within_others_and_what_lies_askew(given):
    rng = np.random.default_rng(3)
    wide, known = rng.standard_normal((2, 9, 3, 5)), rng.standard_normal((3, 2, 4, 5, 3))
    wide, known = wide.astype(np.float32), known.astype(np.float32)
    levels = np.float32([[0.5, 0.5], [1, 0]])
    x, askew = given(wide), given(known).permute(1, 0, 2, 4, 3)
    keep_known(x[:, :4], askew, given.ints([1, 0]), given(levels.T.copy()).T)
    for slot, row in enumerate((1, 0)):
        want, _ = by_numpy(array(askew)[row], levels[slot], wide[slot, :4], wide[slot, :4])
        same_bits(np.ascontiguousarray(array(x)[slot, :4]), want)
    same_bits(np.ascontiguousarray(array(x)[:, 4:]), np.ascontiguousarray(wide[:, 4:]))


SEED = 7
RUN = {"cond": 1, "steps": 5, "guidance_scale": 2.0}


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        pytest.param({**RUN, "eta": 1.0, "strength": 0.6}, {}, id="noise"),
        pytest.param({**RUN, "sampler": "dpmpp_2m"}, {}, id="history"),
        pytest.param({**RUN, "sampler": "heun"}, {"guidance_interval": (0.2, 0.6)}, id="passes-come-and-go"),
        pytest.param({"steps": 4, "sampler": "ddpm", "strength": 0.5}, {}, id="unconditional"),
    ],
)
def test_a_run_of_both_kernels_is_the_engine_s_to_the_bit(given, arguments, options):
    rng = np.random.default_rng(4)
    image = rng.uniform(-1, 1, support.SHAPE).astype(np.float32)
    arguments = {"image": image, "mask": np.clip(rng.uniform(-1, 2, support.SHAPE), 0, 1), "seed": SEED, **arguments}
    seen = []
    with support.make_engine() as engine:
        want = engine.sample(1, callback=lambda step, total, preview: seen.append(preview), **arguments, **options)
        run = Compiler(engine.info).one(sf.Request(options=options, **arguments))
    x, previews = replay(given, run)
    same_bits(x, want)
    same_bits(previews, np.concatenate(seen))


def replay(given, run):
    """A run of one sample by the two kernels: its last state, and its previews."""
    table, levels = run.table, run.known_region.levels
    label = support.NULL if run.cond is None else int(run.cond[0])
    noise = sf.normal(SEED, support.SHAPE)
    image, mask = (np.reshape(values, support.SHAPE) for values in (run.known_region.image, run.known_region.mask))
    x = given(levels[0, 0] * image[None] + levels[0, 1] * noise[None])
    known = given(np.stack([image, mask, noise])[None])
    h, x0 = (given(np.zeros_like(noise)[None]) for _ in range(2))
    sample = given(np.zeros((2, *noise.shape), np.float32))
    sample[:] = table[0][S] * x
    previews = []
    for step, row in enumerate(table):
        cond, uncond = passes(row, run.cond)
        labels = np.array([label, support.NULL])
        outputs = support.rowwise(array(sample), np.full(2, row[0]), {"class_labels": labels})
        maps = {"row_cond": given.ints([cond]), "row_uncond": given.ints([uncond])}
        following = table[min(step + 1, len(table) - 1)]
        next_cond, next_uncond = (-1, -1) if step + 1 == len(table) else passes(following, run.cond)
        written = {
            "x0": x0,
            "next_input": sample,
            "next_rows": given(following),
            "next_cond": given.ints([next_cond]),
            "next_uncond": given.ints([next_uncond]),
        }
        state = {"h": h, "seed": torch.tensor([SEED], device=given.device), "step": given.ints([step]), "out": x}
        fused_step(x, given(outputs), given(row), **maps, **written, **state)
        keep_known(x, known, given.ints([0]), given(levels[step + 1 : step + 2]), **maps, **written)
        previews.append(array(x0).copy())
    return array(x), np.concatenate(previews)


def passes(row, cond):
    """The conditional row, 0, and the unconditional one, 1, that a step reads; -1: none."""
    g = row[COLUMNS.index("g")]
    return -1 if cond is None or g == 0 else 0, 1 if cond is None or g != 1 else -1


@pytest.fixture
def plain(given):
    zeros = {"x": (2, 6), "known": (1, 3, 6), "levels": (2, 2)}
    arguments = {name: given(np.zeros(shape, np.float32)) for name, shape in zeros.items()}
    return {**arguments, "known_row": given.ints([0, -1])}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param({"x": (2, 6, torch.float64)}, TypeError, "x must be .* bfloat16, got float64", id="float64"),
        pytest.param({"known": ()}, ValueError, r"known must have shape \(K, 3, 6\), got \(\)", id="known-scalar"),
        pytest.param({"known": (1, 2, 6)}, ValueError, r"known must .* \(1, 3, 6\), got \(1, 2, 6\)", id="known-parts"),
        pytest.param({"known": (1, 3, 6, torch.float16)}, TypeError, "known must be float32", id="known-half"),
        pytest.param({"known_row": (2, torch.int64)}, TypeError, "known_row must be int32, got int64", id="row-dtype"),
        pytest.param({"known_row": (3, torch.int32)}, ValueError, r"known_row must .* \(2,\), got \(3,\)", id="rows"),
        pytest.param({"levels": (2,)}, ValueError, r"levels must have shape \(2, 2\), got \(2,\)", id="levels"),
        pytest.param({"row_cond": (2, torch.int64)}, TypeError, "row_cond must be int32", id="map"),
        pytest.param({"x0": (2, 5)}, ValueError, r"x0 must have shape \(2, 6\)", id="x0"),
        pytest.param({"x0": (2, 6, torch.float16)}, TypeError, "x0 must be float32, got float16", id="x0-dtype"),
        pytest.param({"next_rows": (16,)}, ValueError, "pass next_input too", id="next-rows-alone"),
        pytest.param({"next_input": (2, 6)}, ValueError, "next_rows, next_cond, next_uncond missing", id="next-alone"),
    ],
)
def test_refuses(plain, device, change, error, message):
    def tensor(spec):
        dtype = [part for part in spec if isinstance(part, torch.dtype)]
        shape = [part for part in spec if isinstance(part, int)]
        return torch.zeros(shape, dtype=(dtype or [torch.float32])[0], device=device)

    with pytest.raises(error, match=message):
        keep_known(**{**plain, **{name: tensor(spec) for name, spec in change.items()}})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(lambda b: {"x": b[:2], "x0": b[1:3]}, "must be apart from", id="x0-over-x"),
        pytest.param(lambda b: {"x": b[:2], "known": b[:3].view(1, 3, 6)}, "x must be apart from known", id="known"),
        pytest.param(lambda b: {"x": b[:1].expand(2, 6)}, "x is written in place", id="all-one"),
        pytest.param(lambda b: {"x0": b[::2][:2]}, "x0 is written in place: it must be contiguous", id="strided"),
    ],
)
def test_refuses_to_write_over_what_is_still_to_be_read(plain, given, arguments, message):
    with pytest.raises(ValueError, match=message):
        keep_known(**{**plain, **arguments(given(np.zeros((12, 6), np.float32)))})


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
def test_nothing_to_keep_is_no_error(given, shape):
    x, known = given(np.zeros(shape, np.float32)), given(np.zeros((1, 3, *shape[1:]), np.float32))
    levels = given(np.zeros((shape[0], 2), np.float32))
    assert keep_known(x, known, given.ints([0] * shape[0]), levels).shape == shape


def test_the_kernel_s_arguments_are_those_that_the_device_s_loop_gives():
    from stepfuse.kernels.variants import variants

    names = ["x", "known", "known_row", "levels", "x0", "row_cond", "row_uncond", "next_input", "next_rows"]
    names += ["next_cond", "next_uncond", "n", "next_input_rows", "x_stride", "next_input_stride", "next_rows_stride"]
    built = {variant.name: variant for variant in variants() if variant.name.startswith("keep_known.")}
    assert set(built) == {f"keep_known.float32.{t}.{a}" for t, a in itertools.product(DTYPES, ("aligned", "any"))}
    for variant in built.values():
        assert [name for name, kind in variant.signature.items() if kind] == names
