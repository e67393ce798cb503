"""Float16 graphs: what stays float32 and why, and that the rest does not."""

import collections
import subprocess
import sys

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import tolerances
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from stepfuse.export import ExportError
from stepfuse.export.onnx.graph import Input, export_onnx
from stepfuse.export.onnx.precision import FLOAT32_OPERATORS, to_float16
from stepfuse.export.onnx.validate import validate

X, T = Input("x", (8,)), Input("t", (), low=0, high=1000)


class Fn(nn.Module):
    def __init__(self, fn, **weights):
        super().__init__()
        self.fn = fn
        for name, value in weights.items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, *inputs):
        return self.fn(self, *inputs)


@pytest.fixture
def export(tmp_path):
    """Exports a function of the module and its inputs in float16; gives the error, the report and the model."""

    def run(fn, inputs=(X,), tolerance=tolerances.FLOAT16_OPERATOR, sizes=None, opset=18, **weights):
        module = Fn(fn, **weights)
        report = export_onnx(
            module, tmp_path / "net.onnx", inputs, ["found"], precision="float16", sizes=sizes, opset=opset
        )
        errors = validate(
            tmp_path / "net.onnx", module, inputs, ["found"], sizes=sizes, tolerance=tolerance, precision="float16"
        )
        return errors["found"], report, onnx.load(tmp_path / "net.onnx")

    return run


def computed_in(model):
    """How many of each operator compute in float16 and in float32, by onnx's own inference of types."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {one.name: one.type.tensor_type.elem_type for one in [*graph.value_info, *graph.output, *graph.input]}
    for node in graph.node:  # onnx does not infer what GroupNormalization gives: its input's type
        types.setdefault(node.output[0], types.get(node.input[0]))
    counts = collections.Counter((node.op_type, types[node.output[0]]) for node in graph.node)
    kinds = (TensorProto.FLOAT16, TensorProto.FLOAT)
    halves, wholes = ({op: n for (op, t), n in counts.items() if t == kind} for kind in kinds)
    return halves, wholes


def test_phases_keep_their_digits(export):
    frequencies = torch.exp(torch.arange(4) * -0.5)

    def embed(self, t):
        phase = (t[:, None] + 0.25) * frequencies
        return torch.cat([phase.sin(), phase.cos()], dim=1) @ self.weight

    error, report, model = export(embed, [T], weight=torch.eye(8))
    halves, wholes = computed_in(model)
    assert halves.keys() == {"MatMul", "Concat", "Cast"}
    assert {"Add", "Mul", "Sin", "Cos"} <= wholes.keys()
    assert report.float32_operators["Add"] == 1
    with np.errstate(all="ignore"):
        naive = np.abs(np.sin(np.float16(999.25)) - np.sin(999.25))
    assert error < naive / 50


@pytest.mark.parametrize("opset", [18, 21, 23])
def test_statistics_and_exponentials_stay_float32(export, opset):
    def norms(self, x):
        h = nn.functional.group_norm(x[:, :, None, None].expand(-1, 8, 3, 3) * 100, 2)
        h = nn.functional.layer_norm(h.flatten(1) @ self.weight, (8,))
        h = h * torch.rsqrt(h.pow(2).mean(dim=-1, keepdim=True) + 1e-6)
        return torch.softmax(h @ self.square, dim=-1)

    _, report, model = export(norms, weight=torch.randn(72, 8), square=torch.randn(8, 8), opset=opset)
    halves, wholes = computed_in(model)
    assert halves["MatMul"] == 2
    assert not halves.keys() & FLOAT32_OPERATORS
    assert {"Softmax", "LayerNormalization", "ReduceMean"} <= wholes.keys() == {*report.float32_operators, "Cast"}


def test_squares_of_what_float16_holds_do_not_overflow(export):
    export(lambda self, x: (x * 3000) / ((x * 3000) * (x * 3000)).mean(dim=1, keepdim=True).sqrt())


def test_weights_are_halved_but_those_that_float32_reads(export):
    _, report, model = export(
        lambda self, x: nn.functional.layer_norm(x @ self.matrix, (8,), self.scale),
        matrix=torch.full((8, 8), 1 / 3),
        scale=torch.full((8,), 1 / 3),
    )
    held = {one.name: one for one in model.graph.initializer}
    assert held["matrix"].data_type == TensorProto.FLOAT16
    np.testing.assert_array_equal(numpy_helper.to_array(held["matrix"]), np.full((8, 8), np.float16(1 / 3)))
    assert held["scale"].data_type == TensorProto.FLOAT
    assert report.weight_bytes < 8 * 8 * 4


def test_what_is_too_large_becomes_the_largest_and_infinity_stays(export):
    mask = torch.tensor([0.0, -3e38, -torch.inf, 0.0, 0.0, 0.0, 0.0, -3e38])
    _, _, model = export(lambda self, x: torch.softmax(x + self.mask, dim=-1), mask=mask)
    held = next(numpy_helper.to_array(one) for one in model.graph.initializer if one.name == "mask")
    assert held.tolist()[:3] == [0.0, -65504.0, -np.inf]


def test_inputs_and_outputs_stay_as_they_are(export, tmp_path):
    inputs = [X, Input("label", (), "int64", low=0, high=5), Input("half", (8,), "float16")]
    export(lambda self, x, label, half: x + self.table[label] + half.float(), inputs, table=torch.randn(5, 8))
    session = ort.InferenceSession(tmp_path / "net.onnx")
    interface = [*session.get_inputs(), *session.get_outputs()]
    assert [(one.name, one.type) for one in interface] == [
        ("x", "tensor(float)"),
        ("label", "tensor(int64)"),
        ("half", "tensor(float16)"),
        ("found", "tensor(float)"),
    ]


def test_operators_with_types_of_their_own(export):
    picture = Input("x", (1, "height", "width"))

    def mixed(self, x):
        large = nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear")  # scales are float32 always
        return large * torch.ones_like(large) + torch.full_like(large, 0.5) + (large > 0).to(torch.float32)

    export(mixed, [picture], sizes={"height": (4, 5), "width": (3,)}, tolerance=0.3)  # near zero either side may be


def test_an_operator_may_be_let_go(tmp_path):
    module = Fn(lambda self, x: torch.softmax(x, dim=-1))
    kept = FLOAT32_OPERATORS - {"Softmax"}
    report = export_onnx(module, tmp_path / "net.onnx", [X], ["found"], precision="float16", float32_operators=kept)
    assert report.float32_operators == {}
    assert computed_in(onnx.load(tmp_path / "net.onnx"))[0] == {"Softmax": 1, "Cast": 1}


def test_moved_rows_do_not_crash_onnxruntime(tmp_path):
    class Moved(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            return self.linear(x.transpose(0, 1)).transpose(0, 1)  # as nn.MultiheadAttention moves them

    inputs, module = [Input("x", (5, 8))], Moved()
    export_onnx(module, tmp_path / "net.onnx", inputs, ["found"], precision="float16")
    load = f"import onnxruntime; onnxruntime.InferenceSession({str(tmp_path / 'net.onnx')!r})"
    subprocess.run([sys.executable, "-c", load], check=True)  # it would take this process with it
    validate(tmp_path / "net.onnx", module, inputs, ["found"], tolerance=tolerances.FLOAT16_OPERATOR)


def test_branches_are_refused():
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18]>
    g (float[N] x, bool c) => (float[N] y) {
        y = If (c) <
            then_branch = t () => (float[N] a) { a = Neg(x) }, else_branch = e () => (float[N] b) { b = Abs(x) }
        >
    }""")
    with pytest.raises(ExportError, match="must have no branches or loops, got If: use float32"):
        to_float16(ir.serde.deserialize_model(model))
