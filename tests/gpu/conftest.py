"""Everything here runs on a GPU, and is skipped with the reason where there is none. ``make gpu-check`` runs it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import support

import stepfuse as sf


def missing():
    """Why nothing here can run, or None."""
    try:
        import torch
        import triton
    except ModuleNotFoundError as error:
        return f"needs {error.name}: pip install 'stepfuse[kernels]'"
    if not torch.cuda.is_available():
        return "there is no GPU that torch can use"
    return "TRITON_INTERPRET is set: nothing is compiled" if triton.knobs.runtime.interpret else None


def pytest_collection_modifyitems(items):
    reason = missing()
    for item in items:
        if item.path.parent.name == "gpu":
            item.add_marker(pytest.mark.gpu)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def torch():
    torch = pytest.importorskip("torch")
    # TF32 keeps 10 bits of a product's operands: nothing here is to be compared at that.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    return torch


@pytest.fixture(scope="session")
def context(torch):
    torch.cuda.init()
    return sf._core.cuda.open()


@pytest.fixture(scope="session")
def cubins(context, tmp_path_factory):
    """Every kernel for this GPU, built ahead of time: in ``STEPFUSE_CUBINS``, if they are there."""
    given = Path(os.environ.get("STEPFUSE_CUBINS", ""))
    if (given / "manifest.json").exists():
        return given
    folder = tmp_path_factory.mktemp("cubins")
    wanted = ["--arch", str(context.compute_capability)]
    subprocess.run([sys.executable, "-m", "stepfuse.kernels.aot", "-o", str(folder), *wanted], check=True)
    return folder


@pytest.fixture(scope="session")
def traced():
    """``traced(work)``: what the profiler sees of it, as the benchmarks have it."""
    file = Path(__file__).parents[2] / "benchmarks" / "gpu" / "traces.py"
    spec = importlib.util.spec_from_file_location("gpu_traces", file)
    traces = importlib.util.module_from_spec(spec)
    sys.modules["gpu_traces"] = traces
    spec.loader.exec_module(traces)
    return traces.traced


SHAPE = (3, 16, 16)
COND = {"class_labels": sf.CondInput(dtype="int64", null=support.NULL)}
MODEL = {"shape": SHAPE, "schedule": support.SCHEDULE, "cond": COND}


@pytest.fixture(scope="session")
def model():
    """Arguments that say what ``make_module``'s network is."""
    return MODEL


@pytest.fixture
def make_module(torch):
    """A small convolutional network with weights from a seed; ``spoil`` is called on its hidden layer."""

    class Net(torch.nn.Module):
        def __init__(self, width, spoil):
            super().__init__()
            self.classes = torch.nn.Embedding(support.NULL + 1, width)
            self.first = torch.nn.Conv2d(SHAPE[0], width, 3, padding=1)
            self.middle = torch.nn.Conv2d(width, width, 3, padding=1)
            self.last = torch.nn.Conv2d(width, SHAPE[0], 3, padding=1)
            self.spoil = spoil

        def forward(self, sample, timestep, class_labels):
            embedding = self.classes(class_labels) + torch.cos(timestep / 300).to(sample.dtype)[:, None]
            hidden = torch.tanh(self.first(sample) + embedding[:, :, None, None])
            if self.spoil:
                hidden = self.spoil(hidden)
            return self.last(torch.tanh(self.middle(hidden))) + 0.5 * sample

    def make(*, width=16, spoil=None):
        torch.manual_seed(0)
        return Net(width, spoil).eval().requires_grad_(False)

    return make


@pytest.fixture
def waiting():
    """What spoils a module: it waits for the device, which nothing that is captured may."""
    return lambda hidden: hidden * (hidden.sum().item() * 0 + 1)


@pytest.fixture
def on_host(torch):
    """``on_host(module)``: an engine on the CPU with a module that is there."""
    engines = []

    def make(module, model=MODEL, **options):
        def call(x, t, cond):
            with torch.no_grad():
                conditioning = {name: torch.from_numpy(values) for name, values in cond.items()}
                return module(torch.from_numpy(x), torch.from_numpy(t), **conditioning).numpy()

        engines.append(sf.Engine.from_callable(call, **{**model, **options}))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def on_cpu(on_host):
    """``on_cpu(module, n, ...)``: the engine's samples on the CPU with the same module."""
    return lambda module, n, **arguments: on_host(module).sample(n, **arguments)


@pytest.fixture
def on_gpu(torch, cubins):
    """``on_gpu(module, ...)``: an engine whose loop is on the GPU, captured unless ``device`` says otherwise."""
    engines = []

    def make(module, *, model=MODEL, dtype=None, serving=None, max_rows=8, **device):
        engine = sf.Engine.from_torch(
            module.to("cuda", dtype or torch.float32),
            **model,
            device=sf.Cuda(**{"cubins": cubins, "eager": False, **device}),
            **({"max_rows": max_rows} if serving is None else {"serving": serving}),
        )
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close(abort=True)


@pytest.fixture
def near():
    def check(got, want, tolerance):
        got = got.float().cpu().numpy() if hasattr(got, "cpu") else got
        difference = np.abs(got - np.asarray(want)).max()
        assert difference <= tolerance, difference

    return check
