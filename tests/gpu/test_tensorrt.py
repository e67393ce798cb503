"""A bundle's network on a GPU as a TensorRT plan, where one can be built: the CPU's images."""

import numpy as np
import onnxruntime
import pytest
import support
import tolerances
from typer.testing import CliRunner

import stepfuse as sf
from stepfuse.backends.cuda.trajectories import Trajectories
from stepfuse.cli import app
from stepfuse.errors import GpuError

GUIDED = {"cond": 3, "steps": 8, "guidance_scale": 2.0, "seed": 7}
ROWS = 8


@pytest.fixture(scope="module", autouse=True)
def library():
    if not (support.installed("tensorrt") or support.installed("tensorrt_rtx")):
        pytest.skip("TensorRT is not installed: pip install 'stepfuse[tensorrt]'")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A bundle with a plan for this GPU."""
    bundle = support.write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")
    done = CliRunner().invoke(app, ["plan", str(bundle.path), "--rows", f"1,{ROWS},{ROWS}"])
    if done.exit_code:
        pytest.skip(f"no plan can be built here: {done.output.strip()}")
    return sf.Bundle.load(bundle.path)


def near(got, bundle, n):
    with sf.Engine.load(bundle) as engine:
        want = engine.sample(n, **GUIDED)
    # TensorRT may take TF32 for float32's products.
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerances.GPU_TF32_IMAGES * np.abs(want).max())


@pytest.mark.parametrize("options", [{}, {"form": "loop"}, {"eager": True}], ids=str)
def test_a_plan_gives_the_cpu_s_images(tiny, cubins, options):
    trajectories = Trajectories.load(tiny, backend="tensorrt", max_rows=ROWS, cubins=cubins, **options)
    for n in (1, 4, 6):
        near(trajectories.sample(n, **GUIDED), tiny, n)


@pytest.mark.parametrize("eager", [False, True], ids=["captured", "eager"])
def test_the_engine_s_loop_gives_the_cpu_s_images(tiny, cubins, eager):
    device = sf.Cuda(backend="tensorrt", cubins=cubins, eager=eager)
    with sf.Engine.load(tiny, device=device, max_rows=ROWS) as engine:
        for n in (1, 4, 9):
            near(engine.sample(n, **GUIDED), tiny, n)


def test_onnx_runtime_s_provider_gives_the_cpu_s_images(tmp_path, cubins):
    if "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no TensorRT execution provider: pip install onnxruntime-gpu tensorrt")
    bundle = support.write_tiny_bundle(tmp_path / "tiny")
    trajectories = Trajectories.load(bundle, backend="onnxruntime-tensorrt", max_rows=ROWS, cubins=cubins)
    near(trajectories.sample(3, **GUIDED), bundle, 3)


def test_without_a_plan_it_says_how_one_is_made(tmp_path, cubins):
    bundle = support.write_tiny_bundle(tmp_path / "tiny")
    with pytest.raises((sf.BundleError, GpuError), match="stepfuse plan"):
        Trajectories.load(bundle, backend="tensorrt", cubins=cubins)
