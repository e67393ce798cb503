"""Weights found in an ONNX file's bytes: the onnx package, which parses all of it, is the oracle."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import stepfuse as sf
from stepfuse.bundle.transposed import TRANSPOSED, transposed_weights
from stepfuse.export import ExportError
from stepfuse.export.onnx.initializers import read_weights

RNG = np.random.default_rng(3)
RAW = RNG.standard_normal((3, 5)).astype(np.float32)
HALF = RNG.standard_normal((2, 3, 1, 1)).astype(np.float16)


def write_model(path, **options):
    """Every way in which a tensor can hold its values, and what lies around them."""
    listed = helper.make_tensor("listed", TensorProto.FLOAT, [2, 2], [1.0, 2.0, 3.0, 4.0])  # float_data
    initializers = [
        numpy_helper.from_array(RAW, "raw"),
        numpy_helper.from_array(np.int64([1, -1]), "integers"),
        listed,
        numpy_helper.from_array(HALF, "half"),
        numpy_helper.from_array(np.float32(7.5), "scalar"),
        numpy_helper.from_array(np.zeros((0, 4), np.float32), "empty"),
        helper.make_tensor(
            "half_listed", TensorProto.FLOAT16, [2], np.float16([1, 2])
        ),  # int32_data, two bytes in four
    ]
    node = helper.make_node("MatMul", ["x", "raw"], ["y"])
    shapes = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["R", size]) for name, size in (("x", 3), ("y", 5))
    ]
    graph = helper.make_graph([node], "graph", shapes[:1], shapes[1:], initializers, doc_string="é" * 200)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    helper.set_model_props(model, {TRANSPOSED: '["raw"]', "other": ""})
    onnx.save_model(model, path, **options)
    return path


@pytest.fixture(params=["inside", "outside"])
def model(request, tmp_path):
    beside = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    return write_model(tmp_path / "model.onnx", **(beside if request.param == "outside" else {}))


def parsed(path):
    return {one.name: numpy_helper.to_array(one, str(path.parent)) for one in onnx.load(path).graph.initializer}


def test_values_and_metadata_are_those_that_onnx_finds(model):
    weights, metadata = read_weights(model)
    assert set(weights) == {"raw", "listed", "half", "scalar", "empty"}
    for name, weight in weights.items():
        expected = parsed(model)[name]
        assert (weight.shape, weight.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(weight.read(), expected)
    assert metadata == {TRANSPOSED: '["raw"]', "other": ""}
    assert transposed_weights(metadata) == {"raw"}


def test_a_change_touches_only_its_weight(model):
    before = parsed(model)
    weights, _ = read_weights(model)
    for name in ("raw", "listed", "half"):
        weights[name].write(weights[name].read() * 2)
    after = parsed(model)
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values * 2 if name in ("raw", "listed", "half") else values)
    for name in ("raw", "listed", "half"):
        weights[name].write(before[name])
    np.testing.assert_equal(parsed(model), before)


def test_every_weight_of_the_embedded_model_is_found():
    path = sf.Bundle.load("fashion").denoiser
    weights, metadata = read_weights(path)
    floats = {name: values for name, values in parsed(path).items() if values.dtype == np.float32}
    assert set(weights) == set(floats)
    assert len(floats) > 60
    for name, values in floats.items():
        np.testing.assert_array_equal(weights[name].read(), values)
    with pytest.raises(ExportError, match="must say which weights it holds transposed"):
        transposed_weights(metadata)


def test_a_value_of_another_shape_or_type_is_refused(model):
    weight = read_weights(model)[0]["raw"]
    with pytest.raises(ValueError, match=r"raw must be float32 \(3, 5\), got float64 \(3, 5\)"):
        weight.write(RAW.astype(np.float64))
    with pytest.raises(ValueError, match=r"got float32 \(5, 3\)"):
        weight.write(RAW.T)


def test_a_file_that_is_cut_or_changed_never_leads_out_of_it(tmp_path):
    whole = write_model(tmp_path / "model.onnx").read_bytes()
    damaged = tmp_path / "damaged.onnx"
    versions = [whole[:length] for length in range(1, len(whole), 7)]
    for at in range(0, len(whole), 5):
        versions.append(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
    refused = 0
    for content in versions:
        damaged.write_bytes(content)
        try:
            weights, _ = read_weights(damaged)
        except ExportError:
            refused += 1
            continue
        for weight in weights.values():
            assert 0 <= weight.offset <= weight.offset + weight.nbytes <= max(len(content), weight.file.stat().st_size)
    assert refused > len(versions) / 4


def test_weights_elsewhere_are_refused(tmp_path):
    model = onnx.load(write_model(tmp_path / "model.onnx"))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../weights.bin")
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=r"weights must lie beside it, got '\.\./weights\.bin'"):
        read_weights(tmp_path / "model.onnx")
