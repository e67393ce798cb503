"""Errors of ours have one base, stay what they were, and are all exported."""

import builtins
import pickle

import pytest
import support

import stepfuse as sf
from stepfuse import errors

FORMER = {
    "BundleError": ValueError,
    "CaptureError": sf.GpuError,
    "CudaError": RuntimeError,
    "DeadlineError": RuntimeError,
    "DenoiserError": RuntimeError,
    "EngineClosed": RuntimeError,
    "ExportError": ValueError,
    "GpuError": RuntimeError,
    "KernelError": sf.GpuError,
    "LoraError": sf.ExportError,
    "PlanError": sf.ExportError,
    "ProviderError": sf.GpuError,
    "QueueFull": RuntimeError,
    "RequestTimeout": TimeoutError,
    "StepfuseError": Exception,
}


def test_every_error_is_here():
    assert set(FORMER) == set(errors.__all__)


@pytest.mark.parametrize(("name", "former"), FORMER.items())
def test_an_error_has_the_base_beside_what_it_was_and_is_exported(name, former):
    error = getattr(sf, name)
    assert issubclass(error, sf.StepfuseError)
    assert issubclass(error, former)
    assert error is getattr(errors, name)
    assert name in sf.__all__
    assert error.__doc__
    assert not hasattr(builtins, name)


@pytest.mark.parametrize("name", ["BundleError", "CudaError", "QueueFull"])
def test_an_error_survives_being_sent_to_another_process(name):
    error = pickle.loads(pickle.dumps(getattr(sf, name)("why")))
    assert type(error) is getattr(sf, name)
    assert str(error) == "why"


def test_what_the_compiled_core_raises_is_caught_by_the_base():
    with support.make_engine(serving=sf.Serving(max_queue=1)) as engine:
        engine.close()
        with pytest.raises(sf.StepfuseError, match="the engine is closed"):
            engine.submit(sf.Request())
