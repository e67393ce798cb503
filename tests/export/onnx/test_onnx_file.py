"""ONNX files written a weight at a time: the same as onnx would write, and nothing of those that do not fit."""

import resource
import shutil
from collections import namedtuple

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from stepfuse.export import ExportError
from stepfuse.export.onnx import onnx_file
from stepfuse.export.onnx.onnx_file import write_onnx

Usage = namedtuple("Usage", "total used free")


def model_of(weights):
    """A model that adds up its input and all weights of shape (N,)."""
    x = ir.Value(name="x", shape=ir.Shape(["rows", None]), type=ir.TensorType(ir.DataType.FLOAT))
    values, total, nodes = [], x, []
    for name, array in weights.items():
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        nodes.append(ir.node("Add", [total, value]))
        values, total = [*values, value], nodes[-1].outputs[0]
    total.name, total.dtype, total.shape = "y", ir.DataType.FLOAT, x.shape
    graph = ir.Graph([x], [total], nodes=nodes, initializers=values, opset_imports={"": 18}, name="g")
    return ir.Model(graph, ir_version=10)


@pytest.fixture(params=[1, 127, 128, 300, 5000], ids=lambda size: f"{size} numbers")
def weights(request):
    """Sizes whose bytes are below and above what one and two bytes of a varint hold, and a page."""
    rng = np.random.default_rng(0)
    return {f"w{i}": rng.standard_normal(request.param).astype(np.float32) for i in range(3)}


@pytest.mark.parametrize("external", [False, True])
def test_files_hold_what_they_were_given(weights, external, tmp_path):
    files, weight_bytes = write_onnx(model_of(weights), tmp_path / "net.onnx", external)
    model = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(model, full_check=True)
    held = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    assert held.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(held[name], array)
    x = np.ones((2, len(weights["w0"])), np.float32)
    (found,) = ort.InferenceSession(tmp_path / "net.onnx").run(None, {"x": x})
    np.testing.assert_allclose(found, x + sum(weights.values()), rtol=1e-6, atol=1e-6)
    assert weight_bytes == sum(array.nbytes for array in weights.values())
    assert sorted(files) == sorted(tmp_path.iterdir())


def test_a_file_is_one_message_with_each_field_once(weights, tmp_path):
    write_onnx(model_of(weights), tmp_path / "net.onnx")
    written = (tmp_path / "net.onnx").read_bytes()
    assert len(onnx.load_from_string(written).SerializeToString()) == len(written)


def test_external_weights_begin_on_pages_and_small_ones_stay(tmp_path):
    weights, odd = {"large": np.ones(300, np.float32), "small": np.ones(300, np.float16)}, np.ones((300, 7), np.float32)
    write_onnx(model_of(weights), tmp_path / "net.onnx", True)
    large, small = onnx.load(tmp_path / "net.onnx", load_external_data=False).graph.initializer
    region = {entry.key: entry.value for entry in large.external_data}
    assert region == {"location": "net.onnx.data", "offset": "0", "length": "1200"}
    assert small.raw_data == weights["small"].tobytes()
    write_onnx(model_of({"a": odd, "b": odd}), tmp_path / "two.onnx", True)
    offsets = [
        {entry.key: entry.value for entry in one.external_data}["offset"]
        for one in onnx.load(tmp_path / "two.onnx", load_external_data=False).graph.initializer
    ]
    assert offsets == ["0", "12288"]


def test_weights_that_one_message_cannot_hold_are_external(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "EXTERNAL_FROM", sum(array.nbytes for array in weights.values()))
    assert len(write_onnx(model_of(weights), tmp_path / "net.onnx")[0]) == 2
    monkeypatch.setattr(onnx_file, "EXTERNAL_FROM", onnx_file.EXTERNAL_FROM + 1)
    assert len(write_onnx(model_of(weights), tmp_path / "other.onnx")[0]) == 1


def test_a_disk_too_small_is_found_out_before(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 10_000_000))
    with pytest.raises(ExportError, match=r"must have room for 20 MB of weights of net.onnx: 10 MB are free"):
        write_onnx(model_of({"w": np.zeros(5_000_000, np.float32)}), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("external", [False, True])
def test_a_disk_that_is_full_in_mid_write_keeps_no_half_file(external, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(ExportError, match=r"must have room for 200 kB of weights of net.onnx: .*too large"):
            write_onnx(model_of({"w": np.zeros(50_000, np.float32)}), tmp_path / "net.onnx", external)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_weight_without_a_value_is_refused(tmp_path):
    model = model_of({"w": np.zeros(3, np.float32)})
    model.graph.initializers["w"].const_value = None
    with pytest.raises(ExportError, match="w has no value"):
        write_onnx(model, tmp_path / "net.onnx")
