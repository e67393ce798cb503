"""The row is one contract in three languages: C++, numpy, and Triton's kernels."""

import re
from pathlib import Path

import pytest

from stepfuse.kernels import columns
from stepfuse.samplers.noise import INITIAL_STATE, STEP
from stepfuse.samplers.table import COLUMNS

CORE = Path(__file__).parents[2] / "csrc/core/step"


def members_of_step_row():
    """Names of the floats of StepRow, as they are declared."""
    [body] = re.findall(r"struct alignas\(64\) StepRow \{(.*?)\n\n", (CORE / "row.h").read_text(), re.DOTALL)
    declarations = re.findall(r"^\s*(\w+) ([\w, ]+);", body, re.MULTILINE)
    assert {kind for kind, _ in declarations} == {"float"}
    return tuple(name for _, names in declarations for name in names.split(", "))


def streams_of_the_core():
    return dict(re.findall(r"^\s*(InitialState|Step) = (\d+),", (CORE / "noise.h").read_text(), re.MULTILINE))


def test_cpp_has_numpys_columns():
    assert members_of_step_row() == COLUMNS


def test_the_kernels_have_numpys_columns():
    assert columns.COLUMNS == COLUMNS
    assert (columns.INITIAL_STATE, columns.STEP) == (INITIAL_STATE, STEP)


def test_the_noise_streams_are_numbered_alike():
    assert streams_of_the_core() == {"InitialState": str(INITIAL_STATE), "Step": str(STEP)}


def test_tritons_constants_number_them_in_order():
    pytest.importorskip("triton", reason="Triton is not installed: it comes for x86-64 Linux")
    from stepfuse.kernels import row, step_kernel

    assert {name: getattr(row, name.upper()).value for name in COLUMNS} == {
        name: index for index, name in enumerate(COLUMNS)
    }
    assert row.WIDTH.value == len(COLUMNS)
    assert step_kernel.STEP_STREAM.value == STEP
