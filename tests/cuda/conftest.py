"""A recording CUDA driver, compiled for the tests, and the fused step as a kernel for it."""

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

HERE = Path(__file__).parent
KERNELS = HERE.parent.parent / "kernels"
BLOCK, WARPS = 256, 2
NAMES = ("t", "s", "g", "p_x", "p_e", "lo", "q_x", "q_h", "q_z", "u_x")
T, S, G, P_X, P_E, LO, Q_X, Q_H, Q_Z, U_X = (sf.steptable.COLUMNS.index(name) for name in NAMES)


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
    """What the driver was asked, and what it is to do. After a test nothing may be left, and no rule broken."""

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
        """Whether the device does nothing before somebody waits for it."""
        self._library.fake_late(int(late))

    def put(self, stream, kind):
        """Work of another kind, by its CUgraphNodeType, as a library puts it on a stream that is captured."""
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
        """Calls since the last time, without those that only look."""
        lines = self._lines(0)
        new, self._seen = lines[self._seen :], len(lines)
        return new

    def names(self):
        return [line.split()[0] for line in self.log()]

    violations = property(lambda self: self._lines(1))
    live = property(lambda self: self._lines(2))


@pytest.fixture
def fake(library):
    fake = Fake(library)
    yield fake
    gc.collect()
    assert fake.violations == []
    assert fake.live == []
    fake.reset()


def step_arguments(*, noise=True, aligned=False):
    """The compiled step's arguments in order, from its source: what the ahead-of-time build's manifest says."""
    [kernel] = [
        node
        for node in ast.parse((KERNELS / "triton_step.py").read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "fused_step_kernel"
    ]
    tree = ast.parse((KERNELS / "variants.py").read_text())
    [types] = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "ARGUMENTS"
    ]
    tensors = ("x", "out", "h", "x0", "prediction", "next_input")
    divisible = (*tensors, "n", "x_stride", "prediction_stride", "out_stride", "next_input_stride") if aligned else ()
    absent = {"z", "BLOCK"} if noise else {"z", "BLOCK", "seed", "step"}
    names = [argument.arg for argument in kernel.args.args if argument.arg not in absent]
    ours = [(name, "*fp32" if name in tensors else types[name], name in divisible) for name in names]
    return [*ours, ("null", "*i8", False), ("null", "*i8", False)]


def array_at(address, shape, dtype):
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * count).from_address(address), dtype=dtype).reshape(shape)


class StepOnHost:
    """What fused_step_kernel does, by its documented header, over the host's memory; and a network."""

    def __init__(self, arguments, network):
        self.names = [(name, kind) for name, kind, _ in arguments]
        self.network = network
        self.ran = []

    def __call__(self, name, words, shape):
        if name == "network":
            rows, sample, t, prediction, n = (ctypes.c_uint64.from_address(words[i]).value for i in range(5))
            x, out = (array_at(address, (rows, n), np.float32) for address in (sample, prediction))
            out[:] = self.network(x, array_at(t, (rows,), np.float32))
            self.ran.append(("network", rows))
            return
        assert name == "fused_step_kernel"
        given = {}
        for i, (argument, kind) in enumerate(self.names):
            wide = kind[0] == "*" or kind == "i64"
            given[argument] = (ctypes.c_int64 if wide else ctypes.c_int32).from_address(words[i]).value
        assert given.pop("null") == 0
        slots, n = shape[1], given["n"]
        assert list(shape[:7]) == [-(-n // BLOCK), slots, 1, 32 * WARPS, 1, 1, 0]
        self.step(given, slots, n)
        self.ran.append(("step", slots))

    def step(self, a, slots, n):
        rows = array_at(a["rows"], (slots, a["rows_stride"]), np.float32)
        next_rows = array_at(a["next_rows"], (slots, a["next_rows_stride"]), np.float32)
        maps = ("row_cond", "row_uncond", "next_cond", "next_uncond")
        cond, uncond, next_cond, next_uncond = (array_at(a[name], (slots,), np.int32) for name in maps)
        x = array_at(a["x"], (slots, n), np.float32)
        history = array_at(a["h"], (slots, n), np.float32) if a["h"] else None
        prediction = array_at(a["prediction"], (a["prediction_rows"], n), np.float32)
        next_input = array_at(a["next_input"], (a["next_input_rows"], n), np.float32)
        next_t = array_at(a["next_t"], (a["next_input_rows"],), np.float32)
        for i in range(slots):
            if cond[i] < 0 and uncond[i] < 0:
                continue
            guided = cond[i] >= 0 and uncond[i] >= 0
            row = rows[i].copy()
            noise = None
            if row[Q_Z]:
                seed, step = array_at(a["seed"], (slots,), np.int64)[i], array_at(a["step"], (slots,), np.int32)[i]
                noise = _core.normal(int(seed), int(step), 1, n)
            h = history[i] if row[Q_H] or row[U_X:].any() else None
            e, e_uncond = prediction[cond[i] if cond[i] >= 0 else uncond[i]], prediction[uncond[i]] if guided else None
            if a["x0"]:
                blend = e if e_uncond is None else e_uncond + row[G] * (e - e_uncond)
                array_at(a["x0"], (slots, n), np.float32)[i] = np.clip(row[P_X] * x[i] + row[P_E] * blend, *row[LO:Q_X])
            try:
                x[i] = sf.step(x[i], e, row, eps_uncond=e_uncond, h=h, z=noise)
            except ValueError:  # of what is not finite
                x[i] = np.nan
            if a["nonfinite"] and not np.isfinite(x[i]).all():
                array_at(a["nonfinite"], (slots,), np.int32)[i] = 1
            for to in (next_cond[i], next_uncond[i]):
                if to >= 0:
                    next_input[to] = next_rows[i][S] * x[i]
                    next_t[to] = next_rows[i][T]


class Rig:
    """A batch on the fake: its memory, its network's captured graphs, and the step as the engine's own C++ does it."""

    def __init__(self, fake, courses, n, *, max_rows, buckets, network, seeds, history=True):
        self.context = fake.open()
        self.stream = cuda.Stream(self.context)
        self.frames = cuda.Frames(courses)
        slots = len(courses)
        arguments = step_arguments()
        self.host = StepOnHost(arguments, network)
        fake.run_kernels(self.host)
        image = f"fused_step_kernel {len(arguments)}\nnetwork 5\n".encode()
        self.module = cuda.Module(self.context, image)
        self.kernel = cuda.StepKernel(self.module, "fused_step_kernel", arguments, BLOCK, WARPS)
        self.memory = {
            name: cuda.DeviceBuffer(self.context, words * 4)
            for name, words in {
                "x": slots * n,
                "h": slots * n,
                "seed": slots * 2,
                "sample": max_rows * n,
                "t": max_rows,
                "prediction": max_rows * n,
            }.items()
        }
        at = {name: buffer.address for name, buffer in self.memory.items()}
        self.slots, self.n, self.max_rows = slots, n, max_rows
        self.values = {
            **dict.fromkeys(("x", "out"), at["x"]),
            **dict.fromkeys(("x0", "nonfinite", "next_t_int"), 0),
            **dict.fromkeys(("x_stride", "out_stride", "prediction_stride", "next_input_stride", "n"), n),
            **dict.fromkeys(("prediction_rows", "next_input_rows"), max_rows),
            "h": at["h"] if history else 0,
            "seed": at["seed"],
            "prediction": at["prediction"],
            "next_input": at["sample"],
            "next_t": at["t"],
        }
        self.put("seed", np.array(seeds, dtype=np.int64))
        types = [("rows", "i64"), ("sample", "*fp32"), ("t", "*fp32"), ("prediction", "*fp32"), ("n", "i64")]
        forward = cuda.StepKernel(self.module, "network", [(*argument, False) for argument in types], BLOCK, WARPS)
        self.forwards = {}
        for rows in buckets:
            capture = cuda.Capture(self.stream)
            tensors = {name: at[name] for name in ("sample", "t", "prediction")}
            forward.launch(self.stream, rows, {"rows": rows, "n": n, **tensors})
            self.forwards[rows] = capture.end()

    def trajectory(self, form, *, steps=None):
        rows = self.frames.forward_rows if steps is None else [max(self.frames.forward_rows)] * steps
        plan = cuda.plan_trajectory(form, self.slots, rows, list(self.forwards))
        return cuda.Trajectory(self.context, plan, self.kernel, self.values, self.forwards)

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


@pytest.fixture
def step_on(fake):
    """``step_on(context, network)``: the step's kernels by whether they make noise, and a network's, on the fake."""

    def make(context, network):
        arguments = {noise: step_arguments(noise=noise) for noise in (True, False)}
        hosts = {noise: StepOnHost(arguments[noise], network) for noise in arguments}
        names = {True: "fused_step_kernel", False: "plain_step_kernel"}

        def body(name, words, shape):
            hosts[name != names[False]](name.replace("plain", "fused"), words, shape)

        fake.run_kernels(body)
        image = "".join(f"{names[noise]} {len(arguments[noise])}\n" for noise in names) + "network 5\n"
        module = cuda.Module(context, image.encode())
        types = [("rows", "i64"), ("sample", "*fp32"), ("t", "*fp32"), ("prediction", "*fp32"), ("n", "i64")]
        steps = {noise: cuda.StepKernel(module, names[noise], arguments[noise], BLOCK, WARPS) for noise in names}
        return steps, cuda.StepKernel(module, "network", [(*argument, False) for argument in types], BLOCK, WARPS)

    return make
