"""A TensorRT plan as a network, on a stand-in for TensorRT's runtime that holds its caller to NVIDIA's rules."""

import ctypes
import logging
import math
import sys
from dataclasses import replace

import fake_tensorrt
import numpy as np
import pytest
import support
from fake_tensorrt import MIB, OUT_OF_MEMORY, Trt
from recording_driver import forward_arguments
from typer.testing import CliRunner

import stepfuse as sf
from stepfuse._core import cuda
from stepfuse.backends.cuda import loop as cuda_loop
from stepfuse.backends.cuda import tensorrt as cuda_tensorrt
from stepfuse.backends.cuda.bundle_network import OpenedNetwork
from stepfuse.backends.cuda.tensorrt import Plans
from stepfuse.backends.cuda.trajectories import Trajectories
from stepfuse.cli import app
from stepfuse.errors import CaptureError
from stepfuse.tensorrt.choice import source_of
from stepfuse.tensorrt.library import Library, find_library
from stepfuse.tensorrt.options import Options
from stepfuse.tensorrt.plan import Plan, PlanKey
from stepfuse.tensorrt.profile import Profile
from stepfuse.tensorrt.store import PlanStore
from stepfuse.tensorrt.target import Target

TARGET = Target(("9.0",), gpu="Fake GPU", driver="580.95.05")
VERSION = "10.13.0.35"
ARGUMENTS = {"cond": 3, "steps": 4, "guidance_scale": 2.0, "eta": 1.0, "seed": 5}


def array_at(address, shape, dtype):
    count = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * count).from_address(address), dtype=dtype).reshape(shape)


@pytest.fixture
def bundle(tmp_path):
    return support.write_tiny_bundle(tmp_path / "tiny")


def keep(bundle, data=b"a plan", *, rows=(1, 4, 8), sizes=None, **changed):
    """A bundle with one more plan."""
    key = PlanKey(
        network="denoiser.onnx",
        source=source_of(bundle, "denoiser.onnx"),
        library="tensorrt",
        version=VERSION,
        target=TARGET,
        profiles=(Profile(rows=rows, sizes=sizes),),
        pixels_per_cell=1,
        options=Options(),
    )
    PlanStore(bundle.path, bundle=True).put(Plan(replace(key, **changed), data, 1.0))
    return sf.Bundle.load(bundle.path)


@pytest.fixture
def made(fake, step_on, bundle, monkeypatch):
    """``made(trt)``: a network of the bundle's plan, and the step's kernels beside it."""
    monkeypatch.setattr(cuda_tensorrt, "target_of", lambda gpu, capability: TARGET)
    real = cuda.open
    monkeypatch.setattr(cuda, "open", lambda device=0, driver=fake.path: real(device, driver))
    used = []

    def make(trt=None, max_rows=8, *, plans=({},), library="tensorrt", info=None):
        trt = trt or Trt()
        used.append(trt)
        trt.put_on(fake, monkeypatch)
        whole = bundle
        for plan in plans:
            whole = keep(whole, **plan)
        given = library if library is None else Library(trt, library, VERSION)
        plans = Plans(whole, library=given)
        network = plans.network(info or whole.info, max_rows)
        network.plans = plans
        labels_of = {}  # by where samples are

        def predict(x, t):  # no method: the driver keeps it, and must not keep what is to be released
            shaped = x.reshape(len(x), *support.SHAPE)
            labels = array_at(labels_of[x.ctypes.data], (len(x),), np.int64)
            return support.rowwise(shaped, t, {"class_labels": labels}).reshape(x.shape)

        kernels, kernel = step_on(network.context, predict)
        stream = cuda.Stream.borrow(network.context, network.stream.address)

        def launch(rows, at):
            addresses = [at[name] for name in ("sample", "timestep", "prediction")]
            labels_of[at["sample"]] = at["class_labels"]
            kernel.launch(stream, rows, forward_arguments(rows, support.ELEMENTS, *addresses))

        trt.launch, trt.stream = launch, network.stream.address
        return network, kernels

    yield make
    monkeypatch.undo()
    for trt in used:
        trt.close()


def engine_s(n, **arguments):
    with support.make_engine() as engine:
        return engine.sample(n, **arguments)


def samples_are_the_engine_s(network, kernels, *counts, form="unrolled"):
    trajectories = Trajectories(network.info, network, kernels, form=form)
    for n in counts:
        np.testing.assert_array_equal(trajectories.sample(n, **ARGUMENTS), engine_s(n, **ARGUMENTS))


@pytest.mark.parametrize("rtx", [False, True], ids=["tensorrt", "tensorrt_rtx"])
@pytest.mark.parametrize("buckets", [(8, 4, 2), ()], ids=["captured", "eager"])
@pytest.mark.parametrize("form", ["unrolled", "loop"])
def test_a_trajectory_is_the_engine_s_to_the_bit(made, rtx, buckets, form):
    library = "tensorrt_rtx" if rtx else "tensorrt"
    network, kernels = made(Trt(rtx=rtx), plans=[{"library": library}], library=library)
    if buckets:
        network.capture(buckets)
    samples_are_the_engine_s(network, kernels, 1, 3, 9, form=form)


@pytest.mark.parametrize("buckets", [(8, 4, 2), ()], ids=["captured", "eager"])
def test_requests_join_and_leave_between_steps(made, buckets):
    network, kernels = made()
    if buckets:
        network.capture(buckets)
    with sf.Engine(
        network.info, cuda_loop.LoopBackend(network, network.info, kernels, 8), sf.Serving(max_rows=8)
    ) as engine:
        futures = [engine.submit(sf.Request(cond=i % 7, seed=i, steps=3 + i % 4)) for i in range(12)]
        images = [future.result() for future in futures]
    for i, image in enumerate(images):
        np.testing.assert_array_equal(image, engine_s(1, cond=i % 7, seed=i, steps=3 + i % 4)[0])
    engine._service._core = engine._service._loop = None


def test_what_is_captured_is_launched_and_tensorrt_not_called_again(made):
    trt = Trt()
    network, kernels = made(trt)
    network.capture((8, 4))
    trt.ran.clear()
    samples_are_the_engine_s(network, kernels, 1, 4)
    assert trt.ran == []


def test_it_may_be_captured_again(made):
    network, kernels = made()
    network.capture((8, 4))
    network.capture((8, 2))
    assert list(network.graphs) == [8, 2]
    samples_are_the_engine_s(network, kernels, 1)


def test_all_row_counts_work_in_the_memory_of_the_largest(made):
    network, _ = made()
    free = network.context.memory[0]
    network.capture((8, 4, 2))
    assert free - network.context.memory[0] == 8 * MIB


@pytest.mark.parametrize("buckets", [(8, 4, 2), ()], ids=["captured", "eager"])
def test_networks_of_one_plan_share_it_and_what_it_works_in(made, fake, buckets):
    trt = Trt()
    network, kernels = made(trt)
    before = network.context.memory[0]
    if buckets:
        network.capture(buckets)
    samples_are_the_engine_s(network, kernels, 3)
    one = before - network.context.memory[0]
    assert one >= 8 * MIB if buckets else one >= 6 * MIB
    other = network.plans.network(network.info, 4)
    if buckets:
        other.capture((4, 2))
    for each in (other, network):
        samples_are_the_engine_s(each, kernels, 1, 3)
    assert trt.plans == [b"a plan"]
    assert before - network.context.memory[0] - one < MIB
    assert other.stream.address == network.stream.address


def test_one_plan_is_loaded_at_a_time(made):
    trt = Trt()
    plans = [{"data": b"square", "sizes": ((5, 4),) * 3}, {"data": b"other", "sizes": ((8, 8),) * 3}]
    network, _ = made(trt, plans=plans)
    own, wide = network.info, network.info.resized((1, 8, 8))
    opened = network.plans
    assert opened.weights(own, 8) == opened.weights(own, 4) != opened.weights(wide, 8)
    del network
    trt.rows_of = {"sample": (1, 8, 8)}
    trt.tensors = {**trt.tensors, **dict.fromkeys(("sample", "prediction"), ("FLOAT", (-1, 1, -1, -1)))}
    opened.network(wide, 8)
    assert (trt.plans, trt.most_engines) == ([b"square", b"other"], 1)


def test_a_budget_gives_up_the_largest_and_their_memory(made, caplog):
    network, kernels = made()
    free = network.context.memory[0]
    with caplog.at_level(logging.WARNING, logger="stepfuse"):
        network.capture((8, 4, 2), memory_bytes=6 * MIB)
    assert sorted(network.graphs) == [2, 4]
    assert free - network.context.memory[0] == 4 * MIB
    assert "forwards of [8] rows are given up" in caplog.text
    samples_are_the_engine_s(network, kernels, 3)


def test_out_of_memory_gives_up_the_largest(made, fake, caplog):
    network, kernels = made()
    fake.set(memory=6 * MIB)
    network.capture((8, 4, 2))
    assert sorted(network.graphs) == [2]  # the graph of one of four rows is counted, and would need a sixth MiB
    assert "forwards of [8, 4] rows are given up" in caplog.text
    samples_are_the_engine_s(network, kernels, 1)


def test_out_of_memory_inside_of_tensorrt_gives_up_the_largest(made, caplog):
    trt = Trt()
    trt.fails = lambda rows: OUT_OF_MEMORY if rows > 4 else None
    network, kernels = made(trt)
    network.capture((8, 4, 2))
    assert sorted(network.graphs) == [2, 4]
    samples_are_the_engine_s(network, kernels, 3)


def test_out_of_memory_as_a_stream_is_captured_gives_up_that_row_count(made):
    trt = Trt()
    trt.fails = lambda rows: OUT_OF_MEMORY if rows > 4 and trt.capturing else None
    network, kernels = made(trt)
    network.capture((8, 4, 2))
    assert sorted(network.graphs) == [2, 4]
    samples_are_the_engine_s(network, kernels, 3)


def test_a_forward_that_fits_runs_behind_one_that_does_not(made, fake):
    network, kernels = made()
    network.forward(2)
    fake.set(memory=6 * MIB)
    with pytest.raises(sf.CudaError, match="out of memory"):
        network.forward(8)
    samples_are_the_engine_s(network, kernels, 1)


def test_fewer_rows_than_the_plan_takes_are_padded(made):
    trt = Trt(profiles=((3, 4, 4), (8, 8, 8)))
    network, kernels = made(trt)
    samples_are_the_engine_s(network, kernels, 1, 4)  # two rows, and eight
    assert {rows for rows, _ in trt.ran} == {3, 8}
    network.capture((8, 6, 2, 1))
    assert sorted(network.graphs) == [3, 8]
    samples_are_the_engine_s(network, kernels, 1, 2, 4)


def test_the_profile_that_is_tuned_for_the_nearest_rows_is_taken(made):
    trt = Trt(profiles=((1, 8, 8), (1, 1, 8), (1, 4, 4)))
    network, _ = made(trt)
    network.capture((8, 4, 2, 1))
    assert set(trt.ran) == {(8, 0), (4, 2), (2, 1), (1, 1)}


def test_halves_are_as_the_plan_has_them(made):
    network, _ = made(Trt(tensors=dict.fromkeys(("sample", "prediction"), ("HALF", (-1, *support.SHAPE)))))
    assert (network.storage, network.cond_storage) == ("float16", {"class_labels": "int64"})


def test_float_conditioning_may_be_half_precision(made, bundle):
    info = replace(bundle.info, cond={**bundle.info.cond, "text": sf.CondInput(dtype="float32", shape=(3,), null=0.0)})
    network, _ = made(Trt(tensors={"text": ("HALF", (-1, 3))}), info=info)
    assert network.cond_storage == {"class_labels": "int64", "text": "float16"}


def test_a_forward_that_fails_raises_tensorrt_s_text(made):
    trt = Trt()
    network, _ = made(trt)
    trt.fails = lambda rows: f"Myelin: no {rows}"
    with pytest.raises(sf.DenoiserError, match="TensorRT could not run 3 rows: Myelin: no 3"):
        network.forward(3)
    with pytest.raises(sf.DenoiserError, match=r"TensorRT could not run 2 rows: Myelin: no 2$"):
        network.capture((2,))


@pytest.mark.parametrize("optional", [False, True])
def test_a_plan_that_cannot_be_captured_may_run_eagerly(made, optional, caplog):
    trt = Trt(rtx=True)
    trt.capturable = False
    network, kernels = made(trt, plans=[{"library": "tensorrt_rtx"}], library="tensorrt_rtx")
    message = "a forward of 4 rows cannot be captured: TensorRT says that it cannot be. A plan that is captured must"
    if optional:
        network.capture((4, 2), optional=True)
        assert message in caplog.text
    else:
        with pytest.raises(CaptureError, match=message):
            network.capture((4, 2))
    samples_are_the_engine_s(network, kernels, 1, 3)


def test_a_capture_that_fails_may_run_eagerly(made, caplog):
    trt = Trt()
    trt.fails = lambda rows: "operation not permitted when stream is capturing" if trt.capturing else None
    network, kernels = made(trt)
    with pytest.raises(
        CaptureError, match="of 8 rows cannot be captured: TensorRT could not run 8 rows: operation not"
    ):
        network.capture((8, 4))
    samples_are_the_engine_s(network, kernels, 1, 3)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        pytest.param({"sample": ("INT8", (-1, 1, 4, 5))}, "sample .* must be float16 or float32, got INT8", id="type"),
        pytest.param({"timestep": ("INT64", (-1,))}, "timestep of the plan must be float32, got int64", id="timestep"),
        pytest.param({"class_labels": ("HALF", (-1,))}, "class_labels .* must be int64, got float16", id="cond"),
        pytest.param({"prediction": ("HALF", (-1, 1, 4, 5))}, "must be of one type, got float32 and float16", id="two"),
        pytest.param(
            {"sample": ("FLOAT", (-1, 3, 8, 8))},
            r"a row of sample of the plan must have shape \(1, 4, 5\), got \(3, 8, 8\)",
            id="shape",
        ),
        pytest.param({"text": ("FLOAT", (-1, 3))}, "a plan's tensors must be .*prediction.*, got .*text", id="name"),
    ],
)
def test_a_plan_of_another_network_is_refused(made, tensors, message):
    with pytest.raises(sf.BundleError, match=message):
        made(Trt(tensors=tensors))


def test_a_plan_of_any_size_is_run_in_that_of_the_bundle_or_refused(made):
    any_size = dict.fromkeys(("sample", "prediction"), ("FLOAT", (-1, 1, -1, -1)))
    network, kernels = made(Trt(tensors=any_size, rows_of={"sample": support.SHAPE}))
    network.capture((8, 2))
    samples_are_the_engine_s(network, kernels, 1)
    with pytest.raises(sf.BundleError, match=r"a profile of the plan must take rows of .*\(1, 4, 5\).*: none does"):
        made(Trt(tensors=any_size, rows_of={"sample": (1, 8, 8)}))


def test_rows_that_the_plan_does_not_take_are_refused(made):
    with pytest.raises(ValueError, match="max_rows must be 1 to 8, which the plan is for, got 9"):
        made(max_rows=9)
    with pytest.raises(ValueError, match="max_rows must be 1 to 2 or 8 to 8, which the plan is for, got 3"):
        made(Trt(profiles=((1, 1, 2), (8, 8, 8))), max_rows=3)
    network, _ = made()
    with pytest.raises(ValueError, match=r"buckets must be row counts from 1 to 8, got \[9, 0\]"):
        network.capture((9, 0))


def test_a_plan_that_tensorrt_refuses_is_an_error(made):
    with pytest.raises(sf.BundleError, match=r"does not take the plan for Fake GPU .*: another version\): build one"):
        made(Trt(refuses="another version"))


def test_no_memory_for_the_weights_is_no_fault_of_the_bundle(made):
    with pytest.raises(sf.DenoiserError, match=r"no memory for the plan of .*denoiser\.onnx: .*\(out of memory\)"):
        made(Trt(refuses=OUT_OF_MEMORY))


@pytest.mark.parametrize(
    ("plans", "why"),
    [
        pytest.param([], "there is none of denoiser.onnx", id="none"),
        pytest.param([{"version": "9.1"}], "version is '9.1', not '10.13.0.35'", id="version"),
        pytest.param([{"source": "0" * 64}], f"source is '{'0' * 64}', not", id="network"),
        pytest.param([{"target": replace(TARGET, gpu="Other")}], "it is for Other .*, not Fake GPU", id="gpu"),
        pytest.param([{"target": replace(TARGET, driver="1.0")}], "with driver 1.0, not .* 580.95.05", id="driver"),
        pytest.param([{"target": Target(("8.9",))}], "it is for compute capability 8.9, ahead of time", id="ahead"),
        pytest.param([{"sizes": ((8, 8),) * 3}], "its pictures are of other sizes than 5x4", id="sizes"),
        pytest.param([{"library": "tensorrt_rtx"}], "library is 'tensorrt_rtx', not 'tensorrt'", id="library"),
        pytest.param(
            [{"version": "9.1", "source": "0" * 64}, {"version": "9.2"}], "version is '9.2', not", id="nearest"
        ),
    ],
)
def test_without_a_plan_the_error_names_the_command(made, bundle, plans, why):
    command = f"'stepfuse plan {bundle.path} --rows 1,4,8'"
    with pytest.raises(sf.BundleError, match=rf"no plan of denoiser\.onnx runs on Fake GPU \(.*{why}.*\): .*{command}"):
        made(plans=plans)


def test_a_plan_that_was_changed_is_refused(made, bundle):
    keep(bundle)
    (file,) = (bundle.path / "plans").glob("*.plan")
    file.write_bytes(b"b plan")
    with pytest.raises(sf.BundleError, match=r"\.plan must be 6 bytes with sha256"):
        made(plans=[])


@pytest.mark.parametrize(
    ("plans", "taken"),
    [
        pytest.param([{"rows": (1, 1, 2), "data": b"few"}, {"data": b"enough"}], b"enough", id="rows"),
        pytest.param([{"rows": (1, 1, 2), "data": b"few"}, {"rows": (1, 2, 4), "data": b"more"}], b"more", id="most"),
        pytest.param(
            [{"data": b"ahead", "target": Target(("8.6", "9.0")), "rows": (1, 8, 16)}, {"data": b"own"}],
            b"own",
            id="the GPU's own",
        ),
        pytest.param(
            [
                {"data": b"other", "sizes": ((8, 8),) * 3, "rows": (1, 8, 16)},
                {"data": b"own", "sizes": ((4, 4), (5, 4), (8, 8))},
            ],
            b"own",
            id="size",
        ),
    ],
)
def test_which_plan_is_taken(made, plans, taken):
    trt = Trt()
    made(trt, plans=plans, max_rows=4)
    assert trt.plans == [taken]


@pytest.fixture
def installed(monkeypatch):
    def install(**modules):
        for name in ("tensorrt", "tensorrt_rtx"):
            module = modules.get(name)
            if module is not None:
                module.__version__ = VERSION
            monkeypatch.setitem(sys.modules, name, module)

    return install


def test_the_tensorrt_that_the_bundle_has_a_plan_of_is_taken(made, installed):
    other, trt = Trt(), Trt(rtx=True)
    installed(tensorrt=other, tensorrt_rtx=trt)
    network, kernels = made(trt, plans=[{"library": "tensorrt_rtx"}], library=None)
    assert (len(trt.plans), len(other.plans)) == (1, 0)
    network.capture((8, 2))
    samples_are_the_engine_s(network, kernels, 1)


def test_of_two_plans_tensorrt_s_is_taken(made, installed):
    trt, other = Trt(), Trt(rtx=True)
    installed(tensorrt=trt, tensorrt_rtx=other)
    made(trt, plans=[{"library": "tensorrt_rtx"}, {}], library=None)
    assert (len(trt.plans), len(other.plans)) == (1, 0)


def test_a_plan_of_a_library_that_is_not_installed_is_refused(made, installed):
    installed(tensorrt_rtx=Trt(rtx=True))
    with pytest.raises(sf.BundleError, match=r"library is 'tensorrt', not 'tensorrt_rtx'.*stepfuse plan"):
        made(library=None)


def test_without_tensorrt_the_error_names_what_to_install(made, bundle, installed):
    installed()
    with pytest.raises(ImportError, match=r"plans need TensorRT \(tensorrt: .*pip install '\S+\[tensorrt\]'"):
        OpenedNetwork(bundle, sf.Cuda(backend="tensorrt")).network(bundle.info, 16)


def test_a_plan_of_the_real_one_is_found(made, bundle, monkeypatch, installed):
    """``stepfuse plan`` needs no GPU: what it puts into a bundle is what is run from it."""
    done = CliRunner().invoke(app, ["plan", str(bundle.path), "--for", "8.9", "--rows", "1,2,4"])
    assert done.exit_code == 0, done.output
    version = find_library("tensorrt_rtx").version
    trt = Trt(profiles=((1, 2, 4),), rtx=True)
    installed(tensorrt_rtx=trt)
    trt.__version__ = version
    monkeypatch.setattr(
        cuda_tensorrt, "target_of", lambda gpu, capability: replace(TARGET, compute_capabilities=("8.9",))
    )
    network, _ = made(trt, max_rows=4, plans=[], library=None)
    (file,) = (bundle.path / "plans").glob("*.plan")
    assert trt.plans == [file.read_bytes()]
    assert network.max_rows == 4


def test_the_stand_in_has_the_interface_of_the_real_one():
    real = find_library("tensorrt_rtx").module
    for stand_in, cls in [
        (fake_tensorrt.RtxContext, real.IExecutionContext),
        (fake_tensorrt.Engine, real.ICudaEngine),
        (fake_tensorrt.Config, real.IRuntimeConfig),
    ]:
        names = {name for name in dir(stand_in) if not name.startswith("_")} - {"rows"}
        assert names <= set(dir(cls))
    assert {"num_io_tensors", "num_optimization_profiles", "get_tensor_name"} <= set(dir(real.ICudaEngine))
    assert set(fake_tensorrt.EXPECTED) - {"memory"} <= set(dir(real.IRuntimeConfig))
    for enumeration in (
        "ExecutionContextAllocationStrategy",
        "DynamicShapesKernelSpecializationStrategy",
        "CudaGraphStrategy",
    ):
        assert set(vars(getattr(Trt, enumeration))) <= set(getattr(real, enumeration).__members__)
    for name, (dtype, _) in fake_tensorrt.TENSORS.items():
        assert hasattr(real.DataType, dtype), name


def test_the_stand_in_reports_broken_rules(fake, monkeypatch):
    trt = Trt(rtx=True)
    trt.put_on(fake, monkeypatch)
    context = fake_tensorrt.RtxContext(trt)
    trt.launch = lambda rows, at: None
    context.set_optimization_profile_async(0, None)
    context.set_input_shape("sample", (4, 1, 4, 5))
    context.update_device_memory_size_for_shapes()
    context.set_device_memory(128, 1)
    trt.capturing = True
    context.execute_async_v3(None)
    context.execute_async_v3(None)
    context.set_tensor_address("sample", 0)
    del context
    assert set(trt.violations) == {
        "a context is made outside of the GPU's context",
        "memory is asked for before all shapes are set",
        "memory is not aligned to 256 bytes",
        "memory is given that does not suffice",
        "a context runs outside of the GPU's context",
        "a context runs without addresses",
        "a context is captured that has not run with its shapes",
        "a context of a captured graph runs",
        "a context of a captured graph is changed",
        "a context is changed while a stream is captured",
        "a context is destroyed outside of the GPU's context",
    }
