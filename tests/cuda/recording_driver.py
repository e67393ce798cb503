"""A recording CUDA driver, compiled for the tests, and the step's kernels for it."""

import ast
import ctypes
import gc
import shlex
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import stepfuse as sf
from stepfuse import _core
from stepfuse._core import cuda
from stepfuse.kernels import cfg_renorm_ref, columns
from stepfuse.kernels.columns import BLENDS

HERE = Path(__file__).parent
KERNELS = HERE.parent.parent / "kernels"
BLOCK, WARPS = 256, 2
SUMS_BLOCK = 8  # several tiles, the last of which is not full
COUNTS = 264  # words of a tile's counts of magnitudes
NAMES = ("t", "s", "g", "p_x", "p_e", "lo", "hi", "q_x", "q_h", "q_z")
T, S, G, P_X, P_E, LO, HI, Q_X, Q_H, Q_Z = (sf.samplers.table.COLUMNS.index(name) for name in NAMES)
BOTH_LINES = sf.samplers.table.COLUMNS + sf.samplers.table.SECOND_LINE
OF_STATE, OF_PREDICTION = (
    [BOTH_LINES.index(name) for name in names] for names in (columns.OF_STATE, columns.OF_PREDICTION)
)


def compiled(folder, *flags):
    library = folder / "libfake.so"
    compiler = shlex.split(sysconfig.get_config_var("CXX") or "c++")
    options = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", *flags]
    command = [*compiler, *options, str(HERE / "fake_driver.cpp"), "-o", str(library), "-ldl"]
    subprocess.run(command, check=True)
    return library


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="session")
def old_library(tmp_path_factory):
    """A driver without cuGetProcAddress_v2: its functions are found by their exported names."""
    return compiled(tmp_path_factory.mktemp("old_driver"), "-DFAKE_WITHOUT_PROC_ADDRESS")


class Fake:
    """Which calls the driver got, and how it behaves. After a test nothing may be left, and no rule broken."""

    BODY = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_uint))

    def __init__(self, path):
        self.path = str(path)
        self._library = ctypes.CDLL(self.path)
        self._library.fake_text.restype = ctypes.c_char_p
        self._library.fake_memory.argtypes = [ctypes.c_size_t]
        self._library.fake_kernels.argtypes = [self.BODY]
        self._library.fake_spend.argtypes = [ctypes.c_double]
        self._body = None
        self.reset()

    def reset(self):
        self._library.fake_reset()
        self._seen = 0

    def open(self):
        return cuda.open(driver=self.path)

    def set(self, *, version=None, memory=None, hidden=(), unified=False):
        if version is not None:
            self._library.fake_version(version)
        if memory is not None:
            self._library.fake_memory(memory)
        for name in hidden:
            self._library.fake_hide(name.encode())
        self._library.fake_unified(int(unified))

    def fail(self, calls_from_now, code):
        self._library.fake_fail(calls_from_now, code)

    def late(self, late):
        """Whether the device does nothing before the host waits for it."""
        self._library.fake_late(int(late))

    def put(self, stream, kind):
        """Work of another kind, by its CUgraphNodeType, as a library enqueues it on a stream that is captured."""
        self._library.fake_put(ctypes.c_void_p(stream.address), kind)

    def spend(self, seconds):
        """Lets time pass on the device."""
        self._library.fake_spend(seconds)

    def run_kernels(self, body):
        self._body = self.BODY(lambda name, words, shape: body(name.decode(), words, shape))
        self._library.fake_kernels(self._body)

    @property
    def calls(self):
        return self._library.fake_calls()

    def _lines(self, which):
        return self._library.fake_text(which).decode().splitlines()

    def log(self):
        """Calls since the last time, without queries."""
        lines = self._lines(0)
        new, self._seen = lines[self._seen :], len(lines)
        return new

    def names(self):
        return [line.split()[0] for line in self.log()]

    violations = property(lambda self: self._lines(1))
    live = property(lambda self: self._lines(2))


@pytest.fixture
def fake(library):
    gc.freeze()  # what is there already is none of the test's: to look at all of torch's objects takes seconds
    fake = Fake(library)
    yield fake
    gc.collect()
    gc.unfreeze()
    assert fake.violations == []
    assert fake.live == []
    fake.reset()


#: The step's kernels: where each is written, and its block and grid here. The fused step is compiled three times.
STEP_KERNELS = {
    "fused_step_kernel": ("step_kernel.py", BLOCK, "tiles"),
    "plain_step_kernel": ("step_kernel.py", BLOCK, "tiles"),
    "second_step_kernel": ("step_kernel.py", BLOCK, "tiles"),
    "guidance_sums_kernel": ("adapt_kernel.py", SUMS_BLOCK, "tiles"),
    "guided_rows_kernel": ("adapt_kernel.py", BLOCK, "slots"),
    "magnitude_counts_kernel": ("adapt_kernel.py", SUMS_BLOCK, "tiles"),
    "thresholded_rows_kernel": ("adapt_kernel.py", BLOCK, "slots"),
    "keep_known_kernel": ("keep_kernel.py", BLOCK, "tiles"),
    "renormed_predictions_kernel": ("renorm_kernel.py", BLOCK, "tiles"),
}
#: A forward, whose arguments are called as the step calls a network's rows.
NETWORK = [
    ("prediction_rows", "i64"),
    ("next_input", "*fp32"),
    ("next_t", "*fp32"),
    ("prediction", "*fp32"),
    ("n", "i64"),
]


def arguments_of(kernel):
    """A compiled kernel's arguments in order, from its source: what the ahead-of-time build's manifest says."""
    tree = ast.parse((KERNELS / STEP_KERNELS[kernel][0]).read_text())
    name = kernel.replace("plain", "fused").replace("second", "fused")
    [found] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    tree = ast.parse((KERNELS / "variants.py").read_text())
    [types] = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "ARGUMENTS"
    ]
    tensors = ("x", "out", "h", "h2", "h3", "x0", "prediction", "next_input")
    types |= dict.fromkeys(tensors, "*fp32") | {"BLOCK": None}
    if kernel != "second_step_kernel":
        types |= {"h2": None, "h3": None}
    if kernel == "plain_step_kernel":
        types |= {"seed": None, "step": None}
    names = [argument.arg for argument in found.args.args]
    ours = [(name, types[name], False) for name in names if types[name]]
    return [*ours, ("null", "*i8", False), ("null", "*i8", False)]


def array_at(address, shape, dtype):
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * count).from_address(address), dtype=dtype).reshape(shape)


class StepOnHost:
    """The step's kernels, by their documented headers, over the host's memory; and a network."""

    def __init__(self, network):
        self.arguments = {name: arguments_of(name) for name in STEP_KERNELS}
        self.network = network
        self.ran = []

    def module(self, context):
        """An image of all of them, loaded."""
        counts = {name: len(arguments) for name, arguments in self.arguments.items()} | {"network": len(NETWORK)}
        return cuda.Module(context, "".join(f"{name} {count}\n" for name, count in counts.items()).encode())

    def kernels(self, module):
        """By name."""
        return {
            name: cuda.StepKernel(module, name, self.arguments[name], block, WARPS, grid=grid)
            for name, (_, block, grid) in STEP_KERNELS.items()
        }

    def __call__(self, name, words, shape):
        if name == "network":
            rows, sample, t, prediction, n = (ctypes.c_uint64.from_address(words[i]).value for i in range(5))
            x, out = (array_at(address, (rows, n), np.float32) for address in (sample, prediction))
            out[:] = self.network(x, array_at(t, (rows,), np.float32))
            self.ran.append(("network", rows))
            return
        given = {}
        for i, (argument, kind, _) in enumerate(self.arguments[name]):
            wide = kind[0] == "*" or kind == "i64"
            given[argument] = (ctypes.c_int64 if wide else ctypes.c_int32).from_address(words[i]).value
        assert given.pop("null") == 0
        _, block, grid = STEP_KERNELS[name]
        n, slots = given["n"], shape[1] if grid == "tiles" else shape[0]
        want = [-(-n // block), slots, 1] if grid == "tiles" else [slots, 1, 1]
        assert list(shape[:7]) == [*want, 32 * WARPS, 1, 1, 0]
        given["maps"] = {key: array_at(given[key], (slots,), np.int32) for key in ("row_cond", "row_uncond")}
        kind = name.removesuffix("_kernel")
        run = self.step if kind.endswith("_step") else getattr(self, kind)
        run(given, slots, n)
        self.ran.append(("step" if kind.endswith("_step") else kind, slots))

    def step(self, a, slots, n):
        rows = array_at(a["rows"], (slots, a["rows_stride"]), np.float32)
        x = array_at(a["x"], (slots, n), np.float32)
        assert ("h2" in a) == (a["rows_stride"] == len(BOTH_LINES))
        kept = {name: array_at(a[name], (slots, n), np.float32) for name in ("h", "h2", "h3") if a.get(name)}
        for i, e, e_u in predictions(a, slots, n):
            row = rows[i].copy()
            noise = None
            table = sf.StepTable(row[None])
            if table.uses_noise:
                seed, step = array_at(a["seed"], (slots,), np.int64)[i], array_at(a["step"], (slots,), np.int32)[i]
                noise = _core.normal(int(seed), int(step), 1, n)
            history = {name: kept[name][i] for name in list(kept)[: table.registers]}
            if a["x0"]:
                clean = np.clip(row[P_X] * x[i] + row[P_E] * blend(row, e, e_u), *row[LO:Q_X])
                array_at(a["x0"], (slots, n), np.float32)[i] = clean
            try:
                x[i] = sf.step(x[i], e, row, eps_uncond=e_u, z=noise, **history)
            except ValueError:  # of what is not finite
                x[i] = np.nan
            if a["nonfinite"] and not np.isfinite(x[i]).all():
                array_at(a["nonfinite"], (slots,), np.int32)[i] = 1
            write_next(a, slots, i, x[i])

    def guidance_sums(self, a, slots, n):
        tiles = -(-n // SUMS_BLOCK)
        sums = array_at(a["sums"], (slots, tiles, 9), np.float64)
        blends = array_at(a["guidance"], (slots, 4), np.float32)[:, 1]
        x = array_at(a["x"], (slots, n), np.float32)
        sums[:] = 0
        for i, e_c, e_u in predictions(a, slots, n):
            if e_u is None:
                continue
            state = x[i] * (BLENDS[int(blends[i])] == "projected_clean")
            for tile in range(tiles):
                part = slice(tile * SUMS_BLOCK, (tile + 1) * SUMS_BLOCK)
                c, u, s = (one[part].astype(np.float64) for one in (e_c, e_u, state))
                sums[i, tile] = c.sum(), u.sum(), c @ c, c @ u, u @ u, s.sum(), s @ s, s @ c, s @ u

    def guided_rows(self, a, slots, n):
        rows = array_at(a["rows"], (slots, a["rows_stride"]), np.float32)
        adapted = array_at(a["adapted"], rows.shape, np.float32)
        sums = array_at(a["sums"], (slots, a["tiles"], 9), np.float64)
        guidance = array_at(a["guidance"], (slots, 4), np.float32).astype(np.float64)
        for i in range(slots):
            guided = all(rows_of[i] >= 0 for rows_of in a["maps"].values())
            adapted[i] = guided_row(rows[i], guidance[i], sums[i].sum(axis=0), n) if guided else rows[i].copy()

    def magnitude_counts(self, a, slots, n):
        tiles, shift = -(-n // SUMS_BLOCK), a["shift"]
        rows = array_at(a["rows"], (slots, a["rows_stride"]), np.float32)
        x = array_at(a["x"], (slots, n), np.float32)
        ratio = array_at(a["ratio"], (slots,), np.float32)
        counts = array_at(a["counts"], (slots, tiles + 1, COUNTS), np.int32)
        for i, e_c, e_u in predictions(a, slots, n):
            if ratio[i] <= 0:
                continue
            row, found = rows[i], int(counts[i, -1, 0]) if shift < 24 else 0
            bits = np.abs(row[P_X] * x[i] + row[P_E] * blend(row, e_c, e_u)).view(np.int32).astype(np.int64)
            for tile in range(tiles):
                part = bits[tile * SUMS_BLOCK : (tile + 1) * SUMS_BLOCK]
                prefix = part >> shift >> 8
                digits = (part >> shift & 255)[prefix == found >> shift >> 8]
                counts[i, tile, :256] = np.bincount(digits, minlength=256)
                higher = part[prefix > found >> shift >> 8]
                counts[i, tile, 256:258] = higher.min(initial=0x7FFFFFFF), part.max()

    def thresholded_rows(self, a, slots, n):
        rows = array_at(a["rows"], (slots, a["rows_stride"]), np.float32)
        adapted = array_at(a["adapted"], rows.shape, np.float32)
        ratio, largest = (array_at(a[name], (slots,), np.float32) for name in ("ratio", "largest"))
        counts = array_at(a["counts"], (slots, a["tiles"] + 1, COUNTS), np.int32)
        shift, taken = a["shift"], np.maximum(*a["maps"].values()) >= 0
        for i in np.flatnonzero(taken & (ratio > 0)):
            position = float(ratio[i]) * (n - 1)
            low, rank = counts[i, -1, :2].tolist() if shift < 24 else (0, int(position))
            below = counts[i, :-1, :256].sum(axis=0).cumsum()
            digit = int((below <= rank).sum())
            equal = int(below[digit] - (below[digit - 1] if digit else 0))
            rank -= int(below[digit]) - equal
            counts[i, -1, :2] = low, rank = low | digit << shift, rank
            if shift:
                continue
            later = np.flatnonzero(np.diff(below[digit:]))
            following = low + 1 + int(later[0]) if later.size else int(counts[i, :-1, 256].min())
            above = low if rank + 1 < equal or int(position) + 1 == n else following
            values = np.array([low, above], np.int32).view(np.float32).astype(np.float64)
            quantile = np.float32(values[0] + (position - int(position)) * (values[1] - values[0]))
            row = rows[i].copy()
            if counts[i, :-1, 257].max() < 0x7F800000:
                row[[P_X, P_E]] /= min(max(quantile, np.float32(1)), largest[i])
                row[[LO, HI]] = -1, 1
            adapted[i] = row
        if not shift:
            rest = ~(taken & (ratio > 0))
            adapted[rest] = rows[rest].copy()

    def renormed_predictions(self, a, slots, n):
        rows = array_at(a["rows"], (slots, a["rows_stride"]), np.float32)
        patches = array_at(a["patches"], (slots, 4), np.int32)
        for i, e_c, e_u in predictions(a, slots, n):
            patch, *shape = patches[i]
            if e_u is not None and patch:
                e = cfg_renorm_ref(e_c.reshape(shape), e_u.reshape(shape), rows[i, G], patch).ravel()
                e_c[:] = e_u[:] = e

    def keep_known(self, a, slots, n):
        x = array_at(a["x"], (slots, n), np.float32)
        x0 = array_at(a["x0"], (slots, n), np.float32) if a["x0"] else np.zeros_like(x)
        known_row = array_at(a["known_row"], (slots,), np.int32)
        levels = array_at(a["levels"], (slots, 2), np.float32)
        for i in range(slots):
            if known_row[i] < 0 or all(rows_of[i] < 0 for rows_of in a["maps"].values()):
                continue
            image, mask, noise = array_at(a["known"], (known_row[i] + 1, 3, n), np.float32)[-1]
            x[i] = mask * x[i] + (1 - mask) * (levels[i, 0] * image + levels[i, 1] * noise)
            x0[i] = mask * x0[i] + (1 - mask) * image
            write_next(a, slots, i, x[i], timestep=False)


def guided_row(row, guidance, sums, n):
    """A row with its guidance folded in, from the sums over its sample; those that are not finite leave it alone."""
    c, u, cc, cu, uu, s, xx, xc, xu = sums
    (phi, number, eta, norm), (g, p_x, p_e) = guidance, row[[G, P_X, P_E]].astype(np.float64)
    blend, on_c, on_u, on_x = BLENDS[int(number)], g, 1 - g, 0.0
    if not np.isfinite(sums).all():
        return row.copy()
    if blend in ("projected", "projected_clean"):
        clean = blend == "projected_clean"
        dd, dc = cc - 2 * cu + uu, cc - cu
        if clean:
            dd, dc = p_e**2 * dd, p_e * (p_x * (xc - xu) + p_e * dc)
            cc_ = p_x**2 * xx + 2 * p_x * p_e * xc + p_e**2 * cc
        scale = (g - clean) * (min(1.0, norm / dd**0.5) if norm > 0 and dd > 0 else 1.0)
        part = (eta - 1) * dc / (cc_ if clean else cc)
        on_c, on_u, on_x = clean + scale * (1 + part), 1 - clean - scale, clean * scale * part * p_x / p_e
    elif blend == "optimized_scale":
        on_u = (1 - g) * cu / (uu + 1e-8)
    weights, means = np.array([on_c, on_u, on_x]), np.array([c, u, s]) / n
    covariance = np.array([[cc, cu, xc], [cu, uu, xu], [xc, xu, xx]]) / n - np.outer(means, means)
    variance, factor = weights @ covariance @ weights, 1.0
    if phi > 0 and covariance[0, 0] > 0 and variance > 0:
        factor = phi * (covariance[0, 0] / variance) ** 0.5 + 1 - phi
    adapted = row.copy()
    for of_state, of_prediction in zip(OF_STATE, OF_PREDICTION, strict=True):
        if of_prediction < len(row):
            adapted[of_state] += row[of_prediction] * np.float32(factor * on_x)
            adapted[of_prediction] *= np.float32(factor * (1 if blend == "plain" else on_c + on_u))
    if blend != "plain":
        adapted[G] = on_c / (on_c + on_u)
    return adapted


def predictions(a, slots, n):
    """Of each slot that takes part: its index, its prediction, and the unconditional one if it is guided."""
    prediction = array_at(a["prediction"], (a["prediction_rows"], n), np.float32)
    for i, (cond, uncond) in enumerate(zip(*a["maps"].values(), strict=True)):
        if cond >= 0 or uncond >= 0:
            yield i, prediction[cond if cond >= 0 else uncond], prediction[uncond] if min(cond, uncond) >= 0 else None


def blend(row, e, e_uncond):
    return e if e_uncond is None else e_uncond + row[G] * (e - e_uncond)


def write_next(a, slots, slot, x, *, timestep=True):
    """The next forward's rows of a slot."""
    next_rows = array_at(a["next_rows"], (slots, a["next_rows_stride"]), np.float32)
    next_input = array_at(a["next_input"], (a["next_input_rows"], x.size), np.float32)
    for name in ("next_cond", "next_uncond"):
        to = array_at(a[name], (slots,), np.int32)[slot]
        if to < 0:
            continue
        next_input[to] = next_rows[slot][S] * x
        if timestep:
            array_at(a["next_t"], (a["next_input_rows"],), np.float32)[to] = next_rows[slot][T]


def forward_arguments(rows, n, sample, t, prediction):
    """Of a launch of the network."""
    return {"prediction_rows": rows, "n": n, "next_input": sample, "next_t": t, "prediction": prediction}


def network_on(module):
    return cuda.StepKernel(module, "network", [(*argument, False) for argument in NETWORK], BLOCK, WARPS)


class Rig:
    """A batch on the fake: its memory, its network's captured graphs, and the step as the engine's own C++ does it."""

    def __init__(self, fake, courses, n, *, max_rows, buckets, network, seeds, history=True):
        self.context = fake.open()
        self.stream = cuda.Stream(self.context)
        self.frames = cuda.Frames(courses)
        slots = len(courses)
        self.host = StepOnHost(network)
        fake.run_kernels(self.host)
        self.module = self.host.module(self.context)
        kernels = self.host.kernels(self.module)
        self.program = cuda.StepProgram(
            {slots: kernels.pop("plain_step_kernel")},
            {slots: kernels.pop("fused_step_kernel")},
            second={slots: kernels.pop("second_step_kernel")},
            **{name.removesuffix("_kernel"): kernel for name, kernel in kernels.items()},
        )
        self.memory = {
            name: cuda.DeviceBuffer(self.context, words * 4)
            for name, words in {
                "x": slots * n,
                "h": slots * n,
                "h2": slots * n,
                "h3": slots * n,
                "seed": slots * 2,
                "sample": max_rows * n,
                "t": max_rows,
                "prediction": max_rows * n,
                "known": slots * 3 * n,
                "sums": self.program.scratch_bytes(slots, n, cuda.StepNeeds(guidance=True, threshold=True)) // 4,
            }.items()
        }
        at = {name: buffer.address for name, buffer in self.memory.items()}
        self.slots, self.n, self.max_rows = slots, n, max_rows
        self.values = {
            **dict.fromkeys(("x", "out"), at["x"]),
            **dict.fromkeys(("x0", "nonfinite", "next_t_int"), 0),
            **dict.fromkeys(("x_stride", "out_stride", "prediction_stride", "next_input_stride", "n"), n),
            **dict.fromkeys(("prediction_rows", "next_input_rows"), max_rows),
            **{name: at[name] if history else 0 for name in ("h", "h2", "h3")},
            **{name: at[name] for name in ("seed", "prediction", "known", "sums")},
            "counts": at["sums"],
            "next_input": at["sample"],
            "next_t": at["t"],
        }
        self.put("seed", np.array(seeds, dtype=np.int64))
        forward = network_on(self.module)
        self.forwards = {}
        for rows in buckets:
            capture = cuda.Capture(self.stream)
            forward.launch(self.stream, rows, forward_arguments(rows, n, at["sample"], at["t"], at["prediction"]))
            self.forwards[rows] = capture.end()

    def trajectory(self, form, *, steps=None, needs=None):
        rows = self.frames.forward_rows if steps is None else [max(self.frames.forward_rows)] * steps
        plan = cuda.plan_trajectory(form, self.slots, rows, list(self.forwards), self.frames.needs.second)
        needs = needs or self.frames.needs
        return cuda.Trajectory(self.context, plan, self.program, needs, self.values, self.forwards)

    def put(self, name, values):
        self.memory[name].upload(self.stream, np.ascontiguousarray(values))

    def begin(self, noise, tables):
        """The first state and the first forward's rows, as a back end writes them."""
        x = np.stack([np.float32(table.init_scale) * z for z, table in zip(noise, tables, strict=True)])
        self.put("x", x)
        sample, t = np.zeros((self.max_rows, self.n), np.float32), np.zeros(self.max_rows, np.float32)
        for slot, rows in enumerate(self.frames.slot_rows):
            for row in rows:
                if row >= 0:
                    sample[row], t[row] = tables[slot][0][S] * x[slot], tables[slot][0][T]
        self.put("sample", sample)
        self.put("t", t)

    def result(self):
        x = np.empty((self.slots, self.n), np.float32)
        self.memory["x"].download(self.stream, x)
        self.stream.synchronize()
        return x


@pytest.fixture
def rig(fake):
    return lambda *arguments, **options: Rig(fake, *arguments, **options)


@pytest.fixture
def old_driver(old_library):
    return Fake(old_library)


class KernelsOnHost:
    """As StepKernels, on the fake."""

    def __init__(self, fake, context, network):
        host = StepOnHost(network)
        fake.run_kernels(host)
        self.module = host.module(context)
        self._kernels = host.kernels(self.module)

    def get(self, slots, n, *, noise, second=False):
        return self._kernels[f"{'second' if second else 'fused' if noise else 'plain'}_step_kernel"]

    def named(self, name):
        return self._kernels[f"{name.split('.')[0]}_kernel"]


@pytest.fixture
def step_on(fake):
    """``step_on(context, network)``: the step's kernels, and a network's, on the fake."""

    def make(context, network):
        kernels = KernelsOnHost(fake, context, network)
        return kernels, network_on(kernels.module)

    return make
