"""What needs a GPU, or NVIDIA's ``tensorrt``, against a stand-in for its interface: no test machine has either."""

import ctypes
import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import support

from stepfuse.errors import PlanError
from stepfuse.export.tensorrt import Options, Plan, Target, build, build_plan, deserialise, find_library, refit_engine
from stepfuse.export.tensorrt import this_gpu as ask
from stepfuse.export.tensorrt.progress import monitor_for
from stepfuse.tensorrt.library import Library
from stepfuse.tensorrt.logger import logger_for
from stepfuse.tensorrt.plan import PlanKey
from stepfuse.tensorrt.target import target_of

RTX = find_library("tensorrt_rtx")


class Interface:
    """A module with what a subclass replaces, and the rest of ``tensorrt_rtx``."""

    def __getattr__(self, name):
        return getattr(RTX.module, name)


@pytest.fixture
def network(tmp_path):
    return support.write_network(tmp_path / "denoiser.onnx")


class Cuda:
    """``libcuda.so.1`` as far as it is asked: one GPU, and perhaps another that the thread uses."""

    def __init__(self, current=None, status=0):
        self.current, self.status = current, status

    def cuInit(self, flags):  # noqa: N802
        return self.status

    def cuCtxGetDevice(self, device):  # noqa: N802
        if self.current is None:
            return 201
        device._obj.value = self.current
        return 0

    def cuDeviceGet(self, device, ordinal):  # noqa: N802
        device._obj.value = ordinal
        return 0

    def cuDeviceGetName(self, name, size, device):  # noqa: N802
        name.value = (b"NVIDIA L4", b"NVIDIA H200")[device.value]
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):  # noqa: N802
        major, minor = (8, 9), (9, 0)  # of the two
        value._obj.value = {75: major, 76: minor}[attribute][device.value]
        return 0


class Nvml:
    open = False

    def nvmlInit_v2(self):  # noqa: N802
        self.open = True
        return 0

    def nvmlSystemGetDriverVersion(self, version, size):  # noqa: N802
        version.value = b"580.95.05"
        return 0

    def nvmlShutdown(self):  # noqa: N802
        self.open = False
        return 0


def _install(monkeypatch, cuda, nvml):
    monkeypatch.setattr(ctypes, "CDLL", {"libcuda.so.1": cuda, "libnvidia-ml.so.1": nvml}.__getitem__)


@pytest.mark.parametrize(("current", "gpu"), [(None, ("NVIDIA L4", "8.9")), (1, ("NVIDIA H200", "9.0"))])
def test_the_driver_says_which_gpu_a_plan_is_for(monkeypatch, current, gpu):
    nvml = Nvml()
    _install(monkeypatch, Cuda(current), nvml)
    assert ask() == Target((gpu[1],), gpu=gpu[0], driver="580.95.05")
    assert not nvml.open


@pytest.mark.parametrize(("number", "capability"), [(90, "9.0"), (121, "12.1")])
def test_a_gpu_that_is_known_already_is_a_target(monkeypatch, number, capability):
    _install(monkeypatch, None, Nvml())
    assert target_of("NVIDIA H200", number) == Target((capability,), gpu="NVIDIA H200", driver="580.95.05")


def test_a_driver_that_fails_is_reported(monkeypatch):
    _install(monkeypatch, Cuda(status=100), Nvml())
    with pytest.raises(PlanError, match="the GPU cannot be asked: cuInit returned 100"):
        ask()


def test_without_a_driver_the_error_names_the_remedy(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(PlanError, match=r"no GPU is found here \(libcuda.*name the compute capabilities"):
        ask()


def test_the_first_tensorrt_that_is_installed_is_taken(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert find_library().name == "tensorrt_rtx"
    fake = SimpleNamespace(__version__="10.13.0.35")
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    assert find_library() == Library(fake, "tensorrt", "10.13.0.35")
    assert find_library("tensorrt_rtx").is_rtx


def test_without_tensorrt_the_error_names_the_remedy(monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"tensorrt: .*; tensorrt_rtx: .*pip install '\S+\[tensorrt\]'"):
        find_library()
    with pytest.raises(ValueError, match="library must be one of tensorrt, tensorrt_rtx, got 'trt'"):
        find_library("trt")


class Config:
    """An ``IBuilderConfig`` of ``tensorrt``, and what was asked of it."""

    def __init__(self, log, accepts_cache=True):
        self.log, self.accepts_cache, self.cache = log, accepts_cache, None

    def set_flag(self, flag):
        self.log.append(flag.name)

    def clear_flag(self, flag):
        self.log.append(f"no {flag.name}")

    def set_memory_pool_limit(self, pool, size):
        self.log.append((pool.name, size))

    def create_timing_cache(self, data):
        return data

    def set_timing_cache(self, data, ignore_mismatch):
        assert not ignore_mismatch
        if data and not self.accepts_cache:
            return False
        self.cache = data
        return True

    def get_timing_cache(self):
        return SimpleNamespace(serialize=lambda: self.cache + b"+measured")

    def add_optimization_profile(self, profile):
        self.log.append("profile")


class DataCentre(Interface):
    """``tensorrt``: the parser and network are real, the builder's configuration and result are not."""

    def __init__(self, **config):
        self.log = []
        self.config = Config(self.log, **config)

    def Builder(self, logger):  # noqa: N802
        real = RTX.module.Builder(logger)

        def create_network(flags):
            self.log.append(flags)
            return real.create_network(flags)

        return SimpleNamespace(
            create_network=create_network,
            create_optimization_profile=real.create_optimization_profile,
            create_builder_config=lambda: self.config,
            build_serialized_network=lambda network, config: b"plan",
        )


def test_tensorrts_options_are_set(network):
    fake = DataCentre()
    options = Options(
        refittable=True,
        version_compatible=True,
        hardware="ampere_plus",
        workspace=1 << 30,
        level=5,
        tf32=False,
    )
    gpu = Target(("8.9",), gpu="NVIDIA L4", driver="580.95.05")
    plan = build_plan(network, target=gpu, options=options, library=Library(fake, "tensorrt", "10.13"))
    strongly_typed = 1 << int(RTX.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert fake.log == [
        "REFIT",
        "VERSION_COMPATIBLE",
        "no TF32",
        ("WORKSPACE", 1 << 30),
        strongly_typed,
        "profile",
    ]
    assert fake.config.hardware_compatibility_level == RTX.module.HardwareCompatibilityLevel.AMPERE_PLUS
    assert fake.config.builder_optimization_level == 5
    assert (bytes(plan.data), plan.key.library, plan.key.target) == (b"plan", "tensorrt", gpu)


@pytest.mark.parametrize(("name", "alone"), [("denoiser.onnx", True), ("vae_decoder.onnx", False)])
def test_what_is_captured_takes_its_memory_from_the_caller(network, monkeypatch, name, alone):
    configs, configure = [], Options.configure

    def kept(self, config, *others):
        configs.append(config)
        configure(self, config, *others)

    monkeypatch.setattr(Options, "configure", kept)
    build_plan(network.rename(network.with_name(name)), target=Target(("8.9",)), library=RTX)
    assert configs[0].get_flag(RTX.module.BuilderFlag.REQUIRE_USER_ALLOCATION) is alone


def test_tensorrt_does_not_build_ahead_of_time(network):
    with pytest.raises(PlanError, match="tensorrt builds on the GPU that the plan is for, got compute"):
        build_plan(network, target=Target(("8.9",)), library=Library(DataCentre(), "tensorrt", "10.13"))


def test_timings_are_given_to_the_build_and_kept(network, tmp_path):
    library = Library(DataCentre(), "tensorrt", "10.13")
    gpu = Target(("8.9",), gpu="NVIDIA L4", driver="580.95.05")
    kept = tmp_path / "deep" / "timing.cache"
    build_plan(network, target=gpu, library=library, timing_cache=kept)
    assert kept.read_bytes() == b"+measured"
    build_plan(network, target=gpu, library=library, timing_cache=kept)
    assert kept.read_bytes() == b"+measured+measured"
    assert [file.name for file in kept.parent.iterdir()] == ["timing.cache"]


def test_timings_of_another_gpu_are_measured_anew(network, tmp_path, caplog):
    library = Library(DataCentre(accepts_cache=False), "tensorrt", "10.13")
    kept = tmp_path / "timing.cache"
    kept.write_bytes(b"foreign")
    gpu = Target(("8.9",), gpu="NVIDIA L4", driver="580.95.05")
    build_plan(network, target=gpu, library=library, timing_cache=kept)
    assert "it is measured anew" in caplog.text
    assert kept.read_bytes() == b"+measured"


class Refitter:
    """A ``Refitter`` of an engine that holds weights in a dict."""

    def __init__(self, engine, logger):
        self.engine, self.logger, self.given = engine, logger, {}

    def get_all_weights(self):
        return list(self.engine)

    def set_named_weights(self, name, weights):
        if weights.numpy().size != self.engine[name].size:
            self.logger.log(RTX.module.ILogger.ERROR, f"count mismatch of {name}")
            return False
        self.given[name] = weights.numpy().copy()
        return True

    def get_missing_weights(self):
        together = {"w_in", "w_out"}  # that the engine has combined
        return sorted(together - set(self.given)) if together & set(self.given) else []

    def refit_cuda_engine(self):
        self.engine |= {name: value.reshape(self.engine[name].shape) for name, value in self.given.items()}
        return True


class Refitting(Interface):
    """A TensorRT whose engines are dicts, and whose plans are bytes."""

    Refitter = Refitter

    @staticmethod
    def OnnxParserRefitter(refitter, logger):  # noqa: N802
        def refit_from_file(path):
            import onnx
            from onnx import numpy_helper

            graph = onnx.load(path).graph
            refitter.given = {
                one.name: numpy_helper.to_array(one) for one in graph.initializer if one.name in refitter.engine
            }
            return len(refitter.given) == len(refitter.engine)

        error = SimpleNamespace(desc=lambda: "an initializer is missing")
        return SimpleNamespace(refit_from_file=refit_from_file, num_errors=1, get_error=lambda index: error)

    @staticmethod
    def Runtime(logger):  # noqa: N802
        def deserialise(data):
            if data != b"plan":
                logger.log(RTX.module.ILogger.ERROR, "no such engine")
                return None
            return {}

        return SimpleNamespace(deserialize_cuda_engine=deserialise)


LIBRARY = Library(Refitting(), "tensorrt_rtx", "1.7")


def _engine():
    shapes = {"w_in": (20, 64), "w_out": (64, 20), "w_time": (1, 64)}
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def test_all_weights_are_taken_from_an_onnx_file(network):
    engine = _engine()
    refit_engine(engine, onnx=network, library=LIBRARY)
    assert all(np.any(value) for value in engine.values())


def test_given_weights_go_before_the_files(network):
    engine = _engine()
    refit_engine(engine, onnx=network, weights={"w_time": np.full((1, 64), 2, np.float32)}, library=LIBRARY)
    assert (engine["w_time"] == 2).all()
    assert np.any(engine["w_in"])


def test_weights_alone_are_replaced_and_back(network):
    engine = _engine()
    transposed = np.arange(64, dtype=np.float32).reshape(64, 1).T
    refit_engine(engine, weights={"w_time": transposed}, library=LIBRARY)
    np.testing.assert_array_equal(engine["w_time"], transposed)
    refit_engine(engine, weights={"w_time": np.zeros((1, 64), np.float32)}, library=LIBRARY)
    assert not np.any(engine["w_time"])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"lora": np.zeros(4, np.float32)}, "the plan cannot be refitted with lora"),
        ({"w_time": np.zeros(63, np.float32)}, r"w_time of shape \(63,\), float32 does not fit: count mismatch"),
        ({"w_in": np.zeros((20, 64), np.float32)}, "w_out must be given too, or all by the ONNX file"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message):
    engine = _engine()
    with pytest.raises(PlanError, match=message):
        refit_engine(engine, weights=weights, library=LIBRARY)
    assert not any(np.any(value) for value in engine.values())


def test_a_file_that_does_not_fit_is_refused(network):
    with pytest.raises(PlanError, match="its weights do not fit the plan: an initializer is missing"):
        refit_engine({**_engine(), "other": np.zeros(1)}, onnx=network, library=LIBRARY)


def _plan(data=b"plan", version="1.7"):
    key = PlanKey("denoiser.onnx", "0" * 64, "tensorrt_rtx", version, Target(("8.9",)), (), 1, Options())
    return Plan(key, data, 0.1)


def test_a_plan_is_deserialised_by_the_tensorrt_that_made_it():
    assert deserialise(_plan(), library=LIBRARY) == {}
    with pytest.raises(PlanError, match=r"must be of tensorrt_rtx 1\.7, got tensorrt_rtx 1\.6"):
        deserialise(_plan(version="1.6"), library=LIBRARY)
    with pytest.raises(PlanError, match=r"TensorRT does not take the plan for compute capability 8\.9.*no such engine"):
        deserialise(_plan(b"nap"), library=LIBRARY)


def test_logs_go_to_logging_and_errors_are_kept_for_the_exception(caplog):
    caplog.set_level(logging.DEBUG)
    logger = logger_for(RTX.module)
    for severity in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"):
        logger.log(getattr(RTX.module.ILogger, severity), severity)
    assert logger.errors == ["INTERNAL_ERROR", "ERROR"]
    assert [(record.message, record.levelname) for record in caplog.records] == [
        ("INTERNAL_ERROR", "DEBUG"),
        ("ERROR", "DEBUG"),
        ("WARNING", "INFO"),
        ("INFO", "DEBUG"),
        ("VERBOSE", "DEBUG"),
    ]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("method", ["begin", "advance", "end"])
def test_an_exception_cancels_the_build_and_does_not_pass_through_it(method, error):
    def fail(*_):
        raise error

    calls = {"begin": print, "advance": print, "end": print, method: fail}
    monitor = monitor_for(RTX.module, SimpleNamespace(**calls))
    monitor.phase_start("phase", None, 2)
    going = monitor.step_complete("phase", 0)
    monitor.phase_finish("phase")
    assert isinstance(monitor.error, error)
    assert going is (method == "end")
    assert monitor.step_complete("phase", 1) is False


def test_ctrl_c_in_a_real_build_is_raised(network, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(build.BuildProgress, "advance", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_plan(network, target=Target(("8.9",)), progress=True)
