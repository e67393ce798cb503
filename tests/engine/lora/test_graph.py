"""Graphs with inputs for factors: they compute what the plain graph does with the products added to its weights."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from stepfuse.bundle.onnx_file import OnnxFile
from stepfuse.bundle.transposed import TRANSPOSED
from stepfuse.errors import LoraError
from stepfuse.lora.graph import adaptable

RNG = np.random.default_rng(0)


def weights(dtype):
    shapes = {
        "product": (6, 5),
        "turned": (5, 6),
        "gemm": (6, 5),
        "gemm_b": (5, 6),
        "conv": (5, 3, 3, 3),
        "point": (4, 3, 1, 1),
    }
    return {f"{name}.weight": RNG.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def model(values, dtype=TensorProto.FLOAT, transposed=("product.weight", "gemm.weight"), more=()):
    """Layers of every kind: x (R, 2, 6) and flat (R, 6) through products, image (R, 3, 7, 7) through convolutions."""
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "product.weight"], ["by_product"]),
        node("Transpose", ["turned.weight"], ["turned"], perm=[1, 0]),
        node("MatMul", ["x", "turned"], ["by_turned"]),
        node("Gemm", ["flat", "gemm.weight", "bias"], ["by_gemm"]),
        node("Gemm", ["flat", "gemm_b.weight"], ["by_gemm_b"], transB=1, alpha=1.0),
        node(
            "Conv", ["image", "conv.weight", "bias"], ["by_conv"], strides=[2, 2], pads=[1, 0, 1, 2], dilations=[1, 2]
        ),
        node("Conv", ["image", "point.weight"], ["by_point"]),
        *more,
    ]
    info = helper.make_tensor_value_info
    inputs = [info("x", dtype, ["R", 2, 6]), info("flat", dtype, ["R", 6]), info("image", dtype, ["R", 3, 7, 7])]
    ranks = {"by_product": 3, "by_turned": 3, "by_gemm": 2, "by_gemm_b": 2, "by_conv": 4, "by_point": 4}
    outputs = [
        info(one, dtype, [None] * ranks[one] if one in ranks else None)
        for node in nodes
        for one in node.output
        if one.startswith("by_")
    ]
    bias = np.arange(5).astype(next(iter(values.values())).dtype)
    initializers = [numpy_helper.from_array(value, name) for name, value in {**values, "bias": bias}.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if transposed is not None:
        helper.set_model_props(made, {TRANSPOSED: str(list(transposed)).replace("'", '"')})
    return made


def feeds(dtype=np.float32):
    shapes = {"x": (3, 2, 6), "flat": (3, 6), "image": (3, 3, 7, 7)}
    return {name: RNG.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def saved(tmp_path, made, **options):
    onnx.save_model(made, tmp_path / "denoiser.onnx", **options)
    return OnnxFile.open(tmp_path / "denoiser.onnx")


@pytest.mark.parametrize("ranks", [(1, 1), (2, 5)], ids=str)
def test_every_layer_adds_the_product_of_its_factors(tmp_path, ranks):
    values = weights(np.float32)
    graph = adaptable(saved(tmp_path, model(values)))
    assert {one.name: one.layer for one in graph.weights} == {
        name: "Conv" if value.ndim == 4 else "MatMul" for name, value in values.items()
    }
    changed, factors = {}, {}
    for index, one in enumerate(graph.weights):
        rank = ranks[index % 2]
        down, up = (
            RNG.standard_normal(shape).astype(np.float32) for shape in (one.down_shape(rank), one.up_shape(rank))
        )
        factors |= {one.down: down, one.up: up}
        if one.layer == "Conv":
            delta = np.einsum("or,rihw->oihw", up[:, :, 0, 0], down)
        else:
            delta = down @ up if one.transposed else (down @ up).T
        changed[one.name] = values[one.name] + delta.astype(np.float32)
    given = feeds()
    found = ort.InferenceSession(graph.content).run(None, {**given, **factors})
    expected = ort.InferenceSession(model(changed).SerializeToString()).run(None, given)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * np.abs(theirs).max())


def test_the_rewritten_model_is_valid_and_keeps_all_else(tmp_path):
    before = model(weights(np.float32))
    graph = adaptable(saved(tmp_path, before))
    after = onnx.load_from_string(graph.content)
    onnx.checker.check_model(after, full_check=True)
    assert [one.name for one in after.graph.input][:3] == ["x", "flat", "image"]
    assert len(after.graph.input) == 3 + 2 * len(graph.weights)
    assert after.graph.initializer == before.graph.initializer
    assert after.graph.output == before.graph.output
    assert after.metadata_props == before.metadata_props
    assert len(after.graph.node) == len(before.graph.node) + 3 * len(graph.weights)


def test_external_data_stay_where_they_are(tmp_path):
    beside = {"save_as_external_data": True, "location": "weights.data", "size_threshold": 0}
    graph = adaptable(saved(tmp_path, model(weights(np.float32)), **beside))
    after = onnx.load_model_from_string(graph.content)
    assert {one.external_data[0].value for one in after.graph.initializer} == {"weights.data"}
    assert len(graph.weights) == 6


CAST = [
    helper.make_node("Cast", ["half.weight"], ["half"], to=TensorProto.FLOAT),
    helper.make_node("MatMul", ["x", "half"], ["by_half"]),
]


def test_a_weight_that_is_cast_has_factors_of_the_type_that_the_layer_computes_in(tmp_path):
    values = {**weights(np.float32), "half.weight": RNG.standard_normal((6, 4)).astype(np.float16)}
    made = model(values, transposed=("product.weight", "gemm.weight", "half.weight"), more=CAST)
    found = {one.name: one.dtype for one in adaptable(saved(tmp_path, made)).weights}
    assert found["half.weight"] == "float32"


FIXED = {
    "on the left of a product": helper.make_node("MatMul", ["other.weight", "turned.weight"], ["by_other"]),
    "read as it is": helper.make_node("MatMul", ["x", "other.weight"], ["by_other"]),
    "added": helper.make_node("Add", ["x", "other.weight"], ["by_other"]),
    "scaled": helper.make_node("Gemm", ["flat", "other.weight"], ["by_other"], alpha=0.5, transB=1),
    "of another domain": helper.make_node("MatMul", ["x", "other.weight"], ["by_other"], domain="mine"),
    "an output's": helper.make_node("Gemm", ["other.weight", "gemm_b.weight"], ["by_other"], transA=1),
}


@pytest.mark.parametrize("case", FIXED)
def test_weights_that_other_nodes_read_take_none(tmp_path, case):
    values = {**weights(np.float32), "other.weight": RNG.standard_normal((6, 6)).astype(np.float32)}
    graph = adaptable(saved(tmp_path, model(values, more=[FIXED[case]])))
    layers = {one.name: one.layer for one in graph.weights}
    assert layers["other.weight"] == ""
    assert sum(layer != "" for layer in layers.values()) in (5, 6)


def test_a_grouped_convolution_takes_none(tmp_path):
    values = {**weights(np.float32), "grouped.weight": RNG.standard_normal((3, 1, 3, 3)).astype(np.float32)}
    more = [helper.make_node("Conv", ["image", "grouped.weight"], ["by_groups"], group=3)]
    found = {one.name: one.layer for one in adaptable(saved(tmp_path, model(values, more=more))).weights}
    assert found["grouped.weight"] == ""


def test_graphs_that_do_not_say_how_they_hold_weights_or_branch_are_refused(tmp_path):
    with pytest.raises(LoraError, match=r"denoiser\.onnx takes no LoRA while it runs: .*stepfuse\.transposed"):
        adaptable(saved(tmp_path, model(weights(np.float32), transposed=None)))
    inner = helper.make_graph([], "branch", [], [])
    branch = helper.make_node("If", ["flat"], ["by_branch"], then_branch=inner, else_branch=inner)
    with pytest.raises(LoraError, match="it must have no branches or loops"):
        adaptable(saved(tmp_path, model(weights(np.float32), more=[branch])))
