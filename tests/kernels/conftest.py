"""Where the kernels run: on a GPU if there is one, else in Triton's interpreter on CPU tensors."""

import ml_dtypes
import numpy as np
import pytest


@pytest.fixture(scope="session")
def device():
    torch = pytest.importorskip("torch")
    triton = pytest.importorskip("triton", reason="Triton is not installed: it comes for x86-64 Linux")
    return "cpu" if triton.knobs.runtime.interpret else torch.device("cuda").type


@pytest.fixture(scope="session", autouse=True)
def interpreter_rounds_bfloat16(device):
    """Triton 3.7's interpreter cuts a float32 down to bfloat16, where every GPU rounds to nearest, ties to even."""
    if device != "cpu":
        yield
        return
    from triton import language as tl
    from triton.runtime import interpreter

    cast = interpreter.InterpreterBuilder.cast_impl

    def rounding_cast(self, source, target):
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            with np.errstate(invalid="ignore"):
                rounded = source.data.astype(ml_dtypes.bfloat16).view(np.uint16)
            return interpreter.TensorHandle(rounded, target.scalar)
        return cast(self, source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpreterBuilder, "cast_impl", rounding_cast)
        yield
