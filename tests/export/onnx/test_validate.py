"""A graph that gives something else than its module is found out."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from stepfuse.export import ExportError
from stepfuse.export.onnx.graph import Input
from stepfuse.export.onnx.validate import validate

X = Input("x", (3, "wide"))
SIZES = {"wide": (4, 5)}


class Module(nn.Module):
    """What graphs here should give; counts what it is asked."""

    def __init__(self, fn=lambda x: x * 2):
        super().__init__()
        self.fn, self.seen = fn, []

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        return self.fn(x)


@pytest.fixture
def graph(tmp_path):
    """Writes a graph of one operator on x and a constant."""

    def write(operator="Mul", constant=2.0, rows="rows"):
        value = helper.make_tensor("c", TensorProto.FLOAT, (), [constant])
        nodes = [helper.make_node(operator, ["x", "c"], ["found"])]
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 3, "wide"])]
        outputs = [helper.make_tensor_value_info("found", TensorProto.FLOAT, None)]
        model = helper.make_model(
            helper.make_graph(nodes, "g", inputs, outputs, [value]), opset_imports=[helper.make_opsetid("", 18)]
        )
        model.ir_version = 10
        onnx.save(model, tmp_path / "net.onnx")
        return tmp_path / "net.onnx"

    return write


def test_every_number_of_rows_and_every_size_is_tried(graph):
    module = Module()
    assert validate(graph(), module, [X], ["found"], sizes=SIZES, row_counts=(1, 4)) == {"found": 0.0}
    assert module.seen == [(1, 3, 4), (4, 3, 4), (1, 3, 5)]


def test_the_error_is_the_worst_relative_to_the_largest_magnitude(graph):
    found = validate(graph(constant=2.02), Module(), [X], ["found"], sizes=SIZES, tolerance=0.011)
    assert found["found"] == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "fn", "message"),
    [
        ({"constant": 2.001}, lambda x: x * 2, r"found at 1 rows, wide 4: error must be at most 0.0001 .* got 0.0005"),
        (
            {},
            lambda x: x[:, :1] * 2,
            r"wide 4: shape must be \(1, 1, 4\) as in torch, got \(1, 3, 4\)",
        ),
        ({}, lambda x: x / (x - x), "must be finite, got 12 from the module that are not"),
        ({"operator": "Div", "constant": 0.0}, lambda x: x * 2, "got 12 from the exported graph that are not"),
        ({"rows": 2}, lambda x: x * 2, "the exported graph fails at 1 rows, wide 4: "),
        ({"operator": "Sinus"}, lambda x: x * 2, f"net.onnx is refused by ONNX Runtime {ort.__version__}: .*Sinus"),
    ],
    ids=["too far", "another shape", "NaN in torch", "NaN in the graph", "rows fixed", "no operator"],
)
def test_a_graph_that_differs_is_refused(change, fn, message, graph):
    with pytest.raises(ExportError, match=message):
        validate(graph(**change), Module(fn), [X], ["found"], sizes=SIZES)


def test_nothing_but_zeros_has_no_scale(graph):
    assert validate(graph(constant=0.0), Module(lambda x: x * 0), [X], ["found"], sizes=SIZES) == {"found": 0.0}
    with pytest.raises(ExportError, match="got"):
        validate(graph(constant=1.0), Module(lambda x: x * 0), [X], ["found"], sizes=SIZES)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "int32", "bool"])
def test_examples_are_within_their_bounds(dtype):
    rng = np.random.default_rng(0)
    free = Input("x", (2, "3*wide"), dtype).example(7, {"wide": 2}, rng)
    bound = Input("x", (50,), dtype, low=0, high=2).example(7, {}, rng)
    assert free.shape == (7, 2, 6)
    assert free.dtype == bound.dtype == np.dtype(dtype)
    assert 0 <= bound.min() < bound.max() < 2 or dtype == "float16"
    assert torch.from_numpy(free).shape == free.shape
