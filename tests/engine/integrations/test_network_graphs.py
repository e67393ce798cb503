"""Calls of a module as graphs, on the recording double: captured once, replayed, dropped where the module changes."""

import gc
import logging
import weakref
from dataclasses import dataclass

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

from diffusers.utils import BaseOutput  # noqa: E402

from stepfuse._core import cuda  # noqa: E402
from stepfuse.backends.cuda.capture import WARM_UPS  # noqa: E402
from stepfuse.integrations.diffusers import network_graphs  # noqa: E402
from stepfuse.integrations.diffusers.network_graphs import NetworkGraphs  # noqa: E402

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


@dataclass
class Output(BaseOutput):
    sample: torch.Tensor


class Record:
    """What is no part of a module's settings: the rows of its calls, and what is done in each."""

    def __init__(self):
        self.ran, self.before = [], lambda: None


class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.record = torch.nn.Linear(4, 4), Record()

    def forward(self, sample, timestep, *, text=None, scale=1.0, return_dict=True):
        self.record.ran.append(len(sample))
        self.record.before()
        prediction = torch.tanh(scale * self.layer(sample) + 0.01 * timestep[:, None])
        if text is not None:
            prediction = prediction + text["embeds"].mean(dim=1)
        return Output(prediction) if return_dict else (prediction,)


@pytest.fixture
def module():
    return Module().eval()


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.INFO, logger="stepfuse")
    return lambda: [record.getMessage() for record in caplog.records]


def inputs(rows=2, seed=0):
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed)), torch.full((rows,), 10.0 + seed)


def called(graphs, module, *args, owned=True, **kwargs):
    """The result of the graphs' call, which is checked against the module's own."""
    got = graphs(module, args, kwargs, owned=owned)
    want = module(*args, **kwargs)
    module.record.ran.pop()
    torch.testing.assert_close(getattr(got, "sample", got), getattr(want, "sample", want), rtol=0, atol=0)
    assert type(got) is type(want)
    return got


def warm(graphs, module, **kwargs):
    """Follows a module and calls it until it is captured."""
    graphs.follow(module)
    for seed in range(WARM_UPS + 1):
        called(graphs, module, *inputs(seed=seed), **kwargs)


def begun(gpu):
    return sum(line.startswith("begin") for line in gpu.log)


def test_a_signature_is_captured_once_it_is_warm_and_replayed(gpu, module, logged):
    graphs = NetworkGraphs()
    graphs.follow(module)
    for seed in range(WARM_UPS + 4):
        called(graphs, module, *inputs(seed=seed))
    assert module.record.ran == [2] * (WARM_UPS + 1)  # the last of them while it was captured
    assert (begun(gpu), gpu.log.count("replay")) == (1, 4)
    assert logged() == ["compile: captured a call of Module on (2, 4)"]
    graphs.release()
    graphs.follow(module)
    called(graphs, module, *inputs(seed=9))  # in the next run too
    assert begun(gpu) == 1


def test_other_shapes_dtypes_and_values_are_captured_apart(gpu, module):
    graphs = NetworkGraphs()
    (sample, timestep), text = inputs(), {"embeds": torch.ones(2, 3, 4)}
    kinds = [
        ((sample, timestep), {}),
        (inputs(3), {}),
        ((sample, timestep.long()), {}),
        ((sample, timestep), {"scale": 0.5}),
        ((sample, timestep), {"text": text}),
        ((sample, timestep), {"text": {"embeds": torch.ones(2, 5, 4)}}),
        ((sample, timestep), {"return_dict": False}),
    ]
    graphs.follow(module)
    for _ in range(WARM_UPS + 2):
        for args, kwargs in kinds:
            called(graphs, module, *args, **kwargs)
    assert begun(gpu) == len(kinds)
    assert gpu.log.count("replay") == 2 * len(kinds)


def test_the_signatures_used_last_are_kept(gpu, module, monkeypatch):
    monkeypatch.setattr(network_graphs, "MOST_SIGNATURES", 2)
    graphs = NetworkGraphs()
    graphs.follow(module)
    for rows in (1, 2, 1, 3, 1, 2):  # 2 is forgotten for 3, and captured again
        for seed in range(WARM_UPS + 1):
            called(graphs, module, *inputs(rows, seed))
    assert begun(gpu) == 4
    gc.collect()
    assert sum(gpu.users.values()) == 2  # whose memory is the pool's


def test_tensors_that_are_the_same_are_not_copied_again(gpu, module):
    from torch.utils._python_dispatch import TorchDispatchMode

    copied = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            if operation is torch.ops.aten.copy_.default and not gpu.log:
                copied.append(tuple(args[0].shape))
            return operation(*args, **(kwargs or {}))

    graphs, text = NetworkGraphs(), {"embeds": torch.ones(2, 3, 4)}
    warm(graphs, module, text=text)
    for change, again in (
        (lambda: None, []),
        (lambda: text["embeds"].mul_(2), [(2, 3, 4)]),
        (graphs.release, [(2, 3, 4)]),
    ):
        change()
        gpu.log.clear()
        copied.clear()
        with Copies():
            graphs(module, inputs(seed=7), {"text": text}, owned=False)
        assert copied == [(2, 4), (2,), *again]
        called(graphs, module, *inputs(seed=7), text=text)


def test_what_is_owned_outlives_the_next_call(gpu, module):
    graphs = NetworkGraphs()
    warm(graphs, module)
    first, second = (called(graphs, module, *inputs(seed=seed)) for seed in (1, 2))
    assert not torch.equal(first.sample, second.sample)
    shared = [called(graphs, module, *inputs(seed=seed), owned=False) for seed in (1, 2)]
    assert shared[0] is shared[1]


def test_weights_that_change_in_place_act_on_the_graph(gpu, module, logged):
    graphs = NetworkGraphs()
    warm(graphs, module)
    module.layer.weight.mul_(0.5)
    module.layer.weight.data += 0.1  # as fuse_lora does
    graphs.follow(module)
    called(graphs, module, *inputs())
    assert begun(gpu) == 1
    assert len(logged()) == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda module: setattr(module.layer, "weight", torch.nn.Parameter(0.5 * module.layer.weight)),
            "it has tensors that are others (layer.weight)",
        ),
        (lambda module: module.double().float(), "it has tensors that are others (layer.weight, layer.bias)"),
        (lambda module: setattr(module, "scaling", {"one": 0.4}), "it has settings that are others (itself)"),
        (
            lambda module: setattr(module, "layer", torch.nn.Sequential(module.layer)),
            "it has tensors that are others (layer.weight, layer.bias, layer.0.weight and 1 more)",
        ),
        (lambda module: torch.set_float32_matmul_precision("high"), "torch multiplies matrices in 'high' precision"),
    ],
    ids=["replaced", "cast", "setting", "module", "precision"],
)
def test_what_replaces_tensors_or_settings_is_captured_anew(gpu, module, logged, change, why):
    graphs = NetworkGraphs()
    warm(graphs, module)
    try:
        change(module)
        warm(graphs, module)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert begun(gpu) == 2
    assert logged()[1] == f"compile: calls of Module are captured anew: {why}"
    gc.collect()
    assert sum(gpu.users.values()) == 1


def test_another_module_is_captured_anew(gpu, logged):
    graphs, one, other = NetworkGraphs(), Module().eval(), Module().eval()
    warm(graphs, one)
    gone = weakref.ref(one)
    del one
    gc.collect()
    assert gone() is None
    warm(graphs, other)
    assert logged()[1] == "compile: calls of Module are captured anew: it is another"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda module: module.train(), "it is in training mode, where dropout draws random numbers"),
        (
            lambda module: module.layer.register_forward_hook(lambda *_: None),
            "its part layer has hooks, which",
        ),
    ],
    ids=["training", "hooks"],
)
def test_a_module_that_may_not_be_captured_is_not_tried(gpu, module, logged, change, why):
    graphs = NetworkGraphs()
    change(module)
    for _ in range(2):
        graphs.follow(module)
        for seed in range(WARM_UPS + 1):
            called(graphs, module, *inputs(seed=seed))
    assert gpu.log == []
    assert len(logged()) == 1
    assert why in logged()[0]


def out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory")


#: What a module does in each call, and what is logged.
EAGER = {
    "draws": (lambda module, gpu: gpu.randn(), "it draws random numbers, which every replay would repeat"),
    "waits": (lambda module, gpu: begun(gpu) and gpu.stream.synchronize(), "cuStreamSynchronize"),
    "reads": (lambda module, gpu: torch.ones(()).item(), "not permitted when stream is capturing. A captured module"),
    "memory": (
        lambda module, gpu: gpu.capturing and out_of_memory(),
        "memory does not suffice for its graph: CUDA out",
    ),
    "counts": (lambda module, gpu: setattr(module, "calls", len(module.record.ran)), "it changes when it is called"),
}


@pytest.mark.parametrize(("does", "why"), EAGER.values(), ids=EAGER)
def test_what_cannot_be_captured_runs_kernel_by_kernel_and_says_why(gpu, module, logged, does, why):
    module.record.before = lambda: does(module, gpu)
    graphs = NetworkGraphs()
    graphs.follow(module)
    for seed in range(WARM_UPS + 3):
        graphs(module, inputs(seed=seed), {})
    assert len(module.record.ran) >= WARM_UPS + 3  # each call, and one that was to be captured
    assert gpu.log.count("replay") == 0
    assert len(logged()) == 1
    assert logged()[0].startswith("compile: Module runs kernel by kernel: ")
    assert why in logged()[0]
    assert (gpu.directed, gpu.capturing, sum(gpu.users.values())) == (None, False, 0)
    gpu.randn()  # as after any other work


@pytest.mark.parametrize("context", [torch.enable_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_under_gradients_and_autocast_calls_run_kernel_by_kernel(gpu, module, logged, context):
    graphs = NetworkGraphs()
    warm(graphs, module)
    with context():
        graphs.follow(module)
        got, want = graphs(module, inputs(), {}), module(*inputs())
    torch.testing.assert_close(got.sample, want.sample, rtol=0, atol=0)
    assert gpu.log.count("replay") == 1
    graphs.follow(module)
    called(graphs, module, *inputs())
    assert (begun(gpu), gpu.log.count("replay")) == (1, 2)


def test_an_argument_that_is_no_value_is_not_captured(gpu, module, logged):
    graphs = NetworkGraphs()
    graphs.follow(module)
    for _ in range(WARM_UPS + 1):
        called(graphs, module, *inputs(), text={"embeds": torch.ones(2, 3, 4), "mask": object()})
    assert begun(gpu) == 0
    assert logged() == [
        "compile: Module runs kernel by kernel: it takes or returns what is neither a tensor nor a plain value, a"
        " object"
    ]


def test_what_a_replay_cannot_repeat_is_not_captured(gpu, module, logged):
    import numpy as np

    memory, values = cuda.DeviceBuffer(gpu.context, 16), np.zeros(4, np.float32)
    module.record.before = lambda: memory.upload(gpu.stream, values)
    graphs = NetworkGraphs()
    graphs.follow(module)
    for seed in range(WARM_UPS + 1):
        called(graphs, module, *inputs(seed=seed))
    assert "it holds what a replay cannot repeat: copy from pageable memory (1)" in logged()[0]
    assert gpu.log.count("replay") == 0
    module.record.before = lambda: None


def test_an_error_of_the_module_s_is_its_caller_s(gpu, module):
    graphs = NetworkGraphs()
    warm(graphs, module)
    graphs.follow(module)
    module.record.before = lambda: 1 / 0
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            graphs(module, inputs(3), {})
    module.record.before = lambda: None
    called(graphs, module, *inputs())


def test_a_compiled_module_is_captured(gpu, module):
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="eager")
    graphs = NetworkGraphs()
    graphs.follow(compiled)
    for seed in range(WARM_UPS + 2):
        got = graphs(compiled, inputs(seed=seed), {"return_dict": False})
        torch.testing.assert_close(got[0], module(*inputs(seed=seed)).sample, rtol=0, atol=0)
    assert (begun(gpu), gpu.log.count("replay")) == (1, 2)


def test_in_inference_mode_too(gpu, module):
    graphs = NetworkGraphs()
    with torch.inference_mode():
        warm(graphs, module)
    called(graphs, module, *inputs(seed=5))
    with torch.inference_mode():
        sample, timestep = inputs(seed=6)
        called(graphs, module, sample, timestep)
        sample.mul_(2)  # which no version shows
        called(graphs, module, sample, timestep)
    assert begun(gpu) == 1


def test_another_stream_waits_for_the_last_launch(gpu, module, monkeypatch):
    graphs, waits = NetworkGraphs(), []
    warm(graphs, module)

    class Stream:
        def wait_stream(self, other):
            waits.append(other)

    stream, first = Stream(), graphs._stream
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    for _ in range(2):
        called(graphs, module, *inputs())
    assert waits == [first]


def test_a_run_s_tensors_are_let_go_of(gpu, module):
    graphs = NetworkGraphs()
    warm(graphs, module)
    sample, timestep = inputs()
    graphs(module, (sample, timestep), {})
    gone = weakref.ref(sample)
    del sample
    assert gone() is not None
    graphs.release()
    assert gone() is None
