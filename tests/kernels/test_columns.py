"""The row is one contract in three languages: C++, numpy, and Triton's kernels."""

import re
from pathlib import Path

import pytest

from stepfuse.kernels import columns
from stepfuse.samplers.noise import INITIAL_STATE, STEP
from stepfuse.samplers.table import COLUMNS, SECOND_LINE

CORE = Path(__file__).parents[2] / "csrc/core/step"


def members_of(line):
    """Names of the floats of a line's struct, as they are declared."""
    [body] = re.findall(rf"struct alignas\(64\) {line} \{{(.*?)\n\n", (CORE / "row.h").read_text(), re.DOTALL)
    declarations = re.findall(r"^\s*(\w+) ([\w, ]+);", body, re.MULTILINE)
    assert {kind for kind, _ in declarations} == {"float"}
    return tuple(name for _, names in declarations for name in names.split(", "))


def streams_of_the_core():
    return dict(re.findall(r"^\s*(InitialState|Step) = (\d+),", (CORE / "noise.h").read_text(), re.MULTILINE))


def test_cpp_has_numpys_columns():
    assert members_of("StepRow") == COLUMNS
    assert members_of("SecondLine") == SECOND_LINE


def test_the_kernels_have_numpys_columns():
    assert columns.COLUMNS == COLUMNS
    assert columns.SECOND_LINE == SECOND_LINE
    assert (columns.INITIAL_STATE, columns.STEP) == (INITIAL_STATE, STEP)


def test_the_noise_streams_are_numbered_alike():
    assert streams_of_the_core() == {"InitialState": str(INITIAL_STATE), "Step": str(STEP)}


def test_tritons_constants_number_them_in_order():
    pytest.importorskip("triton", reason="Triton is not installed: it comes for x86-64 Linux")
    from stepfuse.kernels import row, step_kernel

    names = (*COLUMNS, *SECOND_LINE[:-1])
    assert {name: getattr(row, name.upper()).value for name in names} == {name: i for i, name in enumerate(names)}
    assert row.BOTH_WIDTHS.value == len(COLUMNS + SECOND_LINE)
    assert step_kernel.STEP_STREAM.value == STEP
