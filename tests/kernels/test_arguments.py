"""Argument errors of the kernels: rule and value, before anything is launched."""

import subprocess
import sys

import numpy as np
import pytest

import stepfuse as sf
from stepfuse.kernels import fused_step

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed: it comes for x86-64 Linux")

PLAIN = np.array(sf.StepTable.from_columns({"q_x": 1.0})[0])


@pytest.fixture
def zeros(device):
    return lambda *shape, dtype=torch.float32: torch.zeros(shape, dtype=dtype, device=device)


@pytest.fixture
def plain(zeros, device):
    return {"x": zeros(4, 6), "prediction": zeros(4, 6), "rows": torch.from_numpy(PLAIN).to(device)}


INT32, INT64 = torch.int32, torch.int64


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param({"x": (4, 6, torch.float64)}, TypeError, "x must be .* bfloat16, got float64", id="float64"),
        pytest.param({"x": ()}, ValueError, r"x must have a first dimension of samples, got shape \(\)", id="scalar"),
        pytest.param({"prediction": (4, 6, INT32)}, TypeError, "prediction must be .*, got int32", id="integers"),
        pytest.param({"prediction": (4, 5)}, ValueError, r"prediction must .* \(4, 6\), got \(4, 5\)", id="samples"),
        pytest.param({"prediction": (8, 6)}, ValueError, "must have 4 rows, got 8", id="rows-without-a-map"),
        pytest.param({"rows": (15,)}, ValueError, r"rows must have shape \(16,\), got \(15,\)", id="short-row"),
        pytest.param({"rows": (3, 16)}, ValueError, r"rows must have shape \(4, 16\), got \(3, 16\)", id="rows"),
        pytest.param({"rows": (16, torch.float64)}, TypeError, "rows must be float32, got float64", id="wide-rows"),
        pytest.param({"row_cond": (4, INT64)}, TypeError, "row_cond must be int32, got int64", id="map-dtype"),
        pytest.param({"row_uncond": (5, INT32)}, ValueError, r"row_uncond must .* \(4,\), got \(5,\)", id="map-size"),
        pytest.param({"seed": (4, INT64)}, ValueError, "seed and step go together", id="seed-alone"),
        pytest.param({"seed": (4, INT32), "step": (4, INT32)}, TypeError, "seed must be int64", id="short-seed"),
        pytest.param(
            {"seed": (4, INT64), "step": (4, INT32), "z": (4, 6)}, ValueError, "pass one of them", id="noise-twice"
        ),
        pytest.param({"z": (4, 7)}, ValueError, r"z must have shape \(4, 6\), got \(4, 7\)", id="z-shape"),
        pytest.param({"z": (4, 6, torch.float16)}, TypeError, "z must be float32, got float16", id="z-dtype"),
        pytest.param({"h": (6, 4)}, ValueError, r"h must have shape \(4, 6\)", id="h-shape"),
        pytest.param({"out": (4, 5)}, ValueError, r"out must have shape \(4, 6\)", id="out-shape"),
        pytest.param({"nonfinite": (4, INT64)}, TypeError, "nonfinite must be int32, got int64", id="nonfinite"),
        pytest.param({"next_rows": (16,)}, ValueError, "pass next_input too", id="next-rows-alone"),
        pytest.param(
            {"next_input": (4, 6)}, ValueError, "next_rows, next_cond, next_uncond missing", id="next-input-alone"
        ),
    ],
)
def test_refuses(plain, zeros, change, error, message):
    def tensor(spec):
        dtype = [part for part in spec if isinstance(part, torch.dtype)]
        return zeros(*(part for part in spec if isinstance(part, int)), dtype=(dtype or [torch.float32])[0])

    with pytest.raises(error, match=message):
        fused_step(**{**plain, **{name: tensor(spec) for name, spec in change.items()}})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(lambda b: {"x": b[:4], "out": b[1:5]}, "out must be apart from x", id="out-over-x"),
        pytest.param(lambda b: {"prediction": b[:4], "h": b[3:7]}, "h must be apart from prediction", id="h-over-eps"),
        pytest.param(lambda b: {"x": b[:4], "h": b[:4]}, "h must be apart from x", id="h-is-x"),
        pytest.param(lambda b: {"h": b[:4], "out": b[:4]}, "must be apart from", id="h-is-out"),
        pytest.param(lambda b: {"out": b[:1].expand(4, 6)}, "out is written in place", id="all-out-one"),
        pytest.param(lambda b: {"out": b[:6, :4].T}, "out is written in place", id="out-transposed"),
        pytest.param(lambda b: {"h": b[::2][:4]}, "h is written in place: it must be contiguous", id="h-strided"),
    ],
)
def test_refuses_to_write_over_what_is_still_to_be_read(plain, zeros, arguments, message):
    with pytest.raises(ValueError, match=message):
        fused_step(**{**plain, **arguments(zeros(12, 6))})


def test_a_cpu_tensor_needs_the_interpreter(plain, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match=r"x must be a CUDA tensor, got one on cpu \(TRITON_INTERPRET=1"):
        fused_step(plain["x"].cpu(), plain["prediction"].cpu(), plain["rows"].cpu())


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("fused_step", "torch"),
        ("fused_step", "triton"),
        ("guidance_rescale", "torch"),
        ("dynamic_threshold", "torch"),
        ("keep_known", "torch"),
        ("cfg_renorm", "torch"),
        ("tune", "triton"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(name, missing):
    code = f"""
import sys
sys.modules[{missing!r}] = None
import stepfuse.kernels
print(*sorted({{"torch", "triton"}} & {{name for name, module in sys.modules.items() if module}}), end="")
try:
    stepfuse.kernels.{name}
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == f"stepfuse.kernels.{name} needs {missing}: pip install 'stepfuse[kernels]'\n"
