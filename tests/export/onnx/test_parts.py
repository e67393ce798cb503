"""A graph that is run part by part gives what ONNX Runtime gives for the whole, with a part's weights in memory."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from stepfuse.export import ExportError
from stepfuse.export.onnx import validate as validation
from stepfuse.export.onnx.inputs import Input
from stepfuse.export.onnx.parts import split
from stepfuse.export.onnx.validate import validate

INPUTS = [Input("x", (20,)), Input("late", (20,)), Input("unused", (2,), "int64"), Input("flag", (), "bool")]
WEIGHT_BYTES = 20 * 20 * 4
RNG = np.random.default_rng(5)


class InOnnxRuntime(nn.Module):
    """The file as a whole, in a session of its own."""

    def __init__(self, path):
        super().__init__()
        self.session = ort.InferenceSession(path)
        self.names = [one.name for one in self.session.get_inputs()]

    def forward(self, *given):
        feed = {one.name: value.numpy() for one, value in zip(INPUTS, given, strict=True)}
        return tuple(map(torch.from_numpy, self.session.run(None, {name: feed[name] for name in self.names})))


def value(name, shape=("rows", 20), kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def nodes():
    """Weights that are shared and read late, a branch with a weight from outside, a sequence, an input left out."""
    branches = {
        f"{name}_branch": helper.make_graph([helper.make_node(*what)], name, [], [value(what[2][0])])
        for name, what in {
            "then": ("MatMul", ["c", "W3"], ["t"]),
            "else": ("Identity", ["c"], ["e"]),
        }.items()
    }
    return [
        helper.make_node("MatMul", ["x", "W1"], ["a"]),
        helper.make_node("Clip", ["a", "", "most"], ["clipped"]),
        helper.make_node("MatMul", ["clipped", "W2"], ["b"]),
        helper.make_node("SplitToSequence", ["b", "halves"], ["sequence"], axis=1),
        helper.make_node("MatMul", ["b", "W1"], ["c"]),
        helper.make_node("ReduceMax", ["flag_number"], ["any"], keepdims=0),
        helper.make_node("Cast", ["any"], ["chosen"], to=TensorProto.BOOL),
        helper.make_node("If", ["chosen"], ["d"], **branches),
        helper.make_node("ConcatFromSequence", ["sequence"], ["joined"], axis=1),
        helper.make_node("MatMul", ["late", "W4"], ["f"]),
        helper.make_node("Sum", ["d", "joined", "f", "a"], ["found"]),
    ]


@pytest.fixture(params=["inside", "outside"])
def path(request, tmp_path):
    weights = [numpy_helper.from_array(RNG.standard_normal((20, 20)).astype(np.float32), f"W{i}") for i in range(1, 5)]
    constants = [
        helper.make_tensor("most", TensorProto.FLOAT, (), [0.5]),
        numpy_helper.from_array(np.int64([8, 12]), "halves"),
    ]
    inputs = [value("x"), value("late"), value("unused", ["rows", 2], TensorProto.INT64)]
    inputs += [value("flag", ["rows"], TensorProto.BOOL)]
    made = [helper.make_node("Cast", ["flag"], ["flag_number"], to=TensorProto.INT32), *nodes()]
    graph = helper.make_graph(made, "g", inputs, [value("found"), value("b")], [*constants, *weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    beside = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 1024}
    onnx.save(model, tmp_path / "net.onnx", **(beside if request.param == "outside" else {}))
    return tmp_path / "net.onnx"


@pytest.mark.parametrize("part_bytes", [1, 2 * WEIGHT_BYTES, 10**9], ids=["one weight", "two weights", "whole"])
def test_parts_give_what_the_whole_gives(path, part_bytes, monkeypatch):
    monkeypatch.setattr(validation, "PART_BYTES", part_bytes)
    errors = validate(path, InOnnxRuntime(path), INPUTS, ["found", "b"], row_counts=(1, 2, 5))
    assert 0 <= max(errors.values()) < 1e-6


def test_a_part_has_no_more_weights_than_it_may(path):
    whole = onnx.load(path)
    for part_bytes, count in ((1, 6), (2 * WEIGHT_BYTES, 2), (10**9, 1)):
        parts = split(path, ["found", "b"], part_bytes)
        held = [[one for one in part.model.graph.initializer if one.name.startswith("W")] for part in parts]
        assert len(parts) == count
        assert all(len(one) * WEIGHT_BYTES <= max(part_bytes, WEIGHT_BYTES) for one in held)
        assert [node for part in parts for node in part.model.graph.node] == list(whole.graph.node)


def test_a_weight_that_is_wrong_in_the_file_is_found_out(path, monkeypatch):
    monkeypatch.setattr(validation, "PART_BYTES", 1)
    module = InOnnxRuntime(path)
    file = path.with_name("weights.bin") if path.with_name("weights.bin").exists() else path
    content = bytearray(file.read_bytes())
    [weight] = [one for one in onnx.load(path).graph.initializer if one.name == "W4"]
    at = content.index(numpy_helper.to_array(weight).tobytes())
    content[at : at + 4] = np.float32(9).tobytes()
    file.write_bytes(content)
    with pytest.raises(ExportError, match="found at 1 rows: error must be at most"):
        validate(path, module, INPUTS, ["found", "b"])


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline", "FluxPipeline"])
def test_graphs_of_pipelines_run_in_parts_of_one_weight(name, exported, monkeypatch):
    """Of free sizes: what one part computes of them another has in its shapes."""
    monkeypatch.setattr(validation, "PART_BYTES", 1)
    bundle = exported(name)
    rng = np.random.default_rng(0)
    for file in ("denoiser.onnx", "vae_decoder.onnx"):
        path = bundle.path / file
        whole = ort.InferenceSession(path)
        outputs = [one.name for one in whole.get_outputs()]
        runs = []
        for rows, side in ((1, 8), (2, 8), (3, 12)):
            sizes = {0: rows, 1: 12, 2: side, 3: side}
            runs.append({one.name: drawn(rng, one, sizes) for one in whole.get_inputs()})
        want = [whole.run(outputs, run) for run in runs]
        for found, [wanted] in zip(validation._run(path, outputs, runs, ["a run"] * 3), want, strict=True):
            np.testing.assert_allclose(found[0], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def drawn(rng, given, sizes):
    """Random values of an input, whose free dimensions are rows, tokens and sides."""
    shape = [one if isinstance(one, int) else sizes[at] for at, one in enumerate(given.shape)]
    return rng.random(shape, np.float32)


#: Exports a network of 403 MB, after a tiny one; prints bytes of its weights and the growth of the peak memory.
EXPORT = """
import json, sys
import torch
import stepfuse as sf
from stepfuse.export import to_bundle

class Network(torch.nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width, bias=False) for _ in range(depth))
    def forward(self, x, t):
        h = x + 0.001 * t[:, None]
        for layer in self.layers:
            h = h + torch.nn.functional.silu(layer(h))
        return h

def status(key):
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))

def export(width, depth, out):
    module = Network(width, depth).eval()
    before = status("VmRSS")
    to_bundle(module, shape=(width,), schedule=sf.NoiseSchedule.linear(), out=out, **json.loads(sys.argv[2]))
    return sum(4 * one.numel() for one in module.parameters()), status("VmHWM") - before

torch.set_num_threads(1)
export(4, 2, sys.argv[1] + "/tiny")
print(json.dumps(export(2048, 24, sys.argv[1] + "/net")))
"""


@pytest.mark.parametrize(
    "options",
    [{"external": False}, {"external": True}, {"precision": "float16", "external": True}],
    ids=["in the graph", "in a file of their own", "float16"],
)
def test_an_export_needs_less_than_a_second_copy_of_the_weights(options, tmp_path):
    command = [sys.executable, "-c", EXPORT, str(tmp_path), json.dumps(options)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    weights, growth = json.loads(found.stdout)
    assert growth < 0.75 * weights
