"""FLOPs of an ONNX file against torch's own counter on the same network, exactly."""

import importlib.util
import sys
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stepfuse.analysis import flops_of

ROOT = Path(__file__).parents[4]


def by_torch(network, *inputs):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops()


def write(path, nodes, inputs, outputs, constants=(), domains=("",)):
    """An ONNX file; inputs, outputs and constants by name and shape."""

    def values(shapes):
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    tensors = [
        helper.make_tensor(name, TensorProto.FLOAT, s, torch.ones(s).flatten()) for name, s in dict(constants).items()
    ]
    graph = helper.make_graph(nodes, "tiny", values(inputs), values(outputs), tensors)
    opsets = [helper.make_opsetid(domain, 18 if domain == "" else 1) for domain in domains]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


class EveryLayer(nn.Module):
    """Strides, dilation, groups, a transposed convolution, products of vectors and of batches of matrices."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2, bias=False)
        self.depthwise = nn.Conv2d(8, 8, (1, 5), groups=8)
        self.line = nn.Conv1d(8, 4, 3)
        self.up = nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1)
        self.tokens = nn.Linear(6, 10)
        self.out = nn.Linear(10, 7)

    def forward(self, x, t):
        x = torch.relu(self.depthwise(self.dilated(self.stem(x))))
        line = self.line(x.mean(-1))
        x = self.up(x)
        tokens = self.tokens(x.flatten(2).transpose(1, 2)) + t[:, None, None]
        weights = torch.softmax(tokens @ tokens.transpose(1, 2), dim=-1)
        return self.out((weights @ tokens).mean(1)) + line.sum((1, 2))[:, None]


@pytest.mark.filterwarnings("ignore")  # of the exporter, about itself
def test_every_layer_is_counted_as_torch_does(tmp_path):
    network = EveryLayer().eval()
    rows = torch.export.Dim("rows", min=1)
    inputs = torch.randn(3, 3, 11, 14), torch.randn(3)
    program = torch.onnx.export(network, inputs, dynamo=True, dynamic_shapes=({0: rows}, {0: rows}), verbose=False)
    program.save(tmp_path / "network.onnx")
    assert flops_of(tmp_path / "network.onnx") == by_torch(network, *(part[:1] for part in inputs)) > 100_000


def test_the_embedded_models_cost_what_torch_counts_for_their_network():
    spec = importlib.util.spec_from_file_location("fashion_model", ROOT / "examples/fashion/model.py")
    model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    expected = by_torch(model.Denoiser().eval(), torch.randn(1, 1, 28, 28), torch.ones(1), torch.ones(1).long())
    assert expected == 251_587_072
    for name in ("fashion", "fashion-8step"):
        assert flops_of(ROOT / "engine/models" / name / "denoiser.onnx") == expected


def test_a_transposed_product_is_counted_by_its_inner_size(tmp_path):
    gemm = helper.make_node("Gemm", ["flat", "w"], ["y"], transA=1)
    flatten = helper.make_node("Reshape", ["x", "shape"], ["flat"])
    shape = helper.make_node("Constant", [], ["shape"], value_ints=[5, 3])
    path = write(tmp_path / "a.onnx", [shape, flatten, gemm], {"x": ["R", 15]}, {"y": None}, {"w": (5, 7)})
    assert flops_of(path) == by_torch(lambda a, w: a.T @ w, torch.ones(5, 3), torch.ones(5, 7))


def test_inputs_of_an_open_size_are_given_one(tmp_path):
    conv = helper.make_node("Conv", ["x", "w"], ["y"])
    path = write(tmp_path / "a.onnx", [conv], {"x": ["R", 2, "H", "W"]}, {"y": None}, {"w": (4, 2, 3, 3)})
    with pytest.raises(
        ValueError, match=r"every dimension of input x but the first must be fixed, got \['R', 2, 'H', 'W'\]"
    ):
        flops_of(path)
    expected = by_torch(nn.Conv2d(2, 4, 3, bias=False), torch.ones(1, 2, 9, 8))
    assert flops_of(path, {"x": (2, 9, 8)}) == expected
    with pytest.raises(ValueError, match=r"row_shapes\['x'\] must give 3 sizes beside the row, got \(9, 8\)"):
        flops_of(path, {"x": (9, 8)})
    with pytest.raises(ValueError, match=r"row_shapes must name inputs of the network \(x\), got z"):
        flops_of(path, {"z": (2, 9, 8)})


def test_a_batch_that_is_fixed_is_refused(tmp_path):
    path = write(
        tmp_path / "a.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [4, 3]}, {"y": None}, {"w": (3, 2)}
    )
    with pytest.raises(ValueError, match=r"the first dimension of input x must be dynamic or 1, got \[4, 3\]"):
        flops_of(path)


@pytest.mark.parametrize(
    ("node", "operator"),
    [
        (helper.make_node("Einsum", ["x", "w"], ["y"], equation="ij,jk->ik"), "Einsum"),
        (helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft"), "com.microsoft.FusedMatMul"),
        (helper.make_node("Relu", ["x"], ["y"], domain="com.example"), "com.example.Relu"),
    ],
    ids=["dense", "foreign", "foreign with a known name"],
)
def test_an_operator_that_is_not_known_is_refused_not_free(tmp_path, node, operator):
    domains = {"", node.domain}
    path = write(tmp_path / "a.onnx", [node], {"x": ["R", 3]}, {"y": None}, {"w": (3, 2)}, domains)
    with pytest.raises(ValueError, match=rf"every operator must be .*MatMul or one that costs little, got {operator}$"):
        flops_of(path)


def test_a_shape_that_depends_on_data_is_refused(tmp_path):
    nodes = [helper.make_node("Reshape", ["x", "like"], ["z"]), helper.make_node("MatMul", ["z", "w"], ["y"])]
    nodes.insert(0, helper.make_node("Cast", ["x1"], ["like"], to=TensorProto.INT64))
    nodes.insert(0, helper.make_node("Squeeze", ["x"], ["x1"]))
    path = write(tmp_path / "a.onnx", nodes, {"x": ["R", 2]}, {"y": None}, {"w": (3, 2)})
    with pytest.raises(ValueError, match="every shape must follow from those of the inputs, but y of a MatMul is open"):
        flops_of(path)


def test_what_is_no_onnx_file_is_refused(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"weights")
    with pytest.raises(ValueError, match=r"a\.onnx must be an ONNX model"):
        flops_of(tmp_path / "a.onnx")
    with pytest.raises(FileNotFoundError):
        flops_of(tmp_path / "b.onnx")


def test_without_onnx_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install '\S+\[analysis\]'"):
        flops_of("any.onnx")
