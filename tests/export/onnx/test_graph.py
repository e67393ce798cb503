"""Graphs of torch modules: their parameters by name, their sizes, and nothing of the machine they were made on."""

import json
import logging
import warnings

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from stepfuse.bundle.transposed import TRANSPOSED
from stepfuse.export import ExportError
from stepfuse.export.onnx.graph import Input, export_onnx
from stepfuse.export.onnx.validate import validate

X = Input("x", (6,))


class Parts(nn.Module):
    """Linear layers as graphs hold them: on vectors, on tokens, shared, alike, and used both ways round."""

    def __init__(self):
        super().__init__()
        self.plain, self.twins = nn.Linear(6, 6), nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.twins[1].load_state_dict(self.twins[0].state_dict())
        self.both = nn.Linear(6, 6, bias=False)
        self.shared = self.plain
        self.register_buffer("offset", torch.arange(6.0), persistent=False)

    def forward(self, x):
        tokens = x[:, None] + self.shared(x)[:, None] + self.offset
        tokens = tokens + self.twins[0](tokens) * self.twins[1](tokens)
        return (self.both(tokens) @ self.both.weight)[:, 0], tokens


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    return Parts()


@pytest.fixture(scope="module")
def graph(parts, tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "parts.onnx"
    export_onnx(parts, path, [X], ["found", "tokens"])
    assert max(validate(path, parts, [X], ["found", "tokens"]).values()) < 1e-5
    return path


def initializers(path):
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


def metadata(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_every_parameter_is_an_initializer_of_its_name(graph, parts):
    held, transposed = initializers(graph), json.loads(metadata(graph)[TRANSPOSED])
    for name, parameter in parts.named_parameters():
        expected = parameter.detach().numpy()
        np.testing.assert_array_equal(held[name], expected.T if name in transposed else expected)
    np.testing.assert_array_equal(held["offset"], parts.offset.numpy())
    assert transposed == ["twins.0.weight", "twins.1.weight"]


def test_the_file_is_a_valid_model_that_says_nothing_of_where_it_was_made(graph):
    model = onnx.load(graph)
    onnx.checker.check_model(model, full_check=True)
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert __file__.encode() not in graph.read_bytes()


def test_exporting_says_nothing_and_leaves_no_trace(parts, tmp_path, capfd):
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx(parts, tmp_path / "parts.onnx", [X], ["found", "tokens"])
    assert capfd.readouterr() == ("", "")
    assert levels == {name: logging.getLogger(name).level for name in levels}


def test_names_may_lose_the_front_that_a_wrapper_adds(tmp_path):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 6)
            self.inner.x = nn.Parameter(torch.ones(6))  # as the input is called

        def forward(self, x):
            return self.inner(x[:, None])[:, 0] * self.inner.x

    wrapper = Wrapper()
    export_onnx(wrapper, tmp_path / "net.onnx", [X], ["found"], prefix="inner.")
    assert initializers(tmp_path / "net.onnx").keys() >= {"weight", "bias", "inner.x"}
    assert json.loads(metadata(tmp_path / "net.onnx")[TRANSPOSED]) == ["weight"]
    validate(tmp_path / "net.onnx", wrapper, [X], ["found"])


class Picture(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(1, 4, 4, stride=4), nn.ConvTranspose2d(4, 1, 4, stride=4)

    def forward(self, x, mask):
        return self.up(self.down(x)) * mask[:, None]


def test_sizes_that_a_run_chooses(tmp_path):
    inputs = [Input("x", (1, "4*height", "4*width")), Input("mask", ("4*height", "4*width"), "bool")]
    sizes = {"height": (2, 3), "width": (2, 5)}
    module = Picture()
    export_onnx(module, tmp_path / "net.onnx", inputs, ["found"], sizes=sizes)
    worst = validate(tmp_path / "net.onnx", module, inputs, ["found"], sizes={"height": (1, 7), "width": (9, 1)})
    assert worst["found"] < 1e-5
    session = ort.InferenceSession(tmp_path / "net.onnx")
    assert [one.shape for one in session.get_inputs()] == [
        ["rows", 1, "4*height", "4*width"],
        ["rows", "4*height", "4*width"],
    ]
    assert session.get_outputs()[0].shape == ["rows", 1, "4*height", "4*width"]


@pytest.mark.parametrize("heads", [None, 2], ids=["no axis of heads", "two heads"])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_with_and_without_an_axis_of_heads(heads, masked, tmp_path):
    class Attention(nn.Module):
        def forward(self, x, mask):
            query, mask = (x, mask) if heads is None else (x.unflatten(2, (heads, -1)).transpose(1, 2), mask[:, None])
            return nn.functional.scaled_dot_product_attention(query, query, query, mask if masked else None)

    inputs = [Input("x", (5, 8)), Input("mask", (5, 5))]
    export_onnx(Attention(), tmp_path / "net.onnx", inputs, ["found"])
    assert validate(tmp_path / "net.onnx", Attention(), inputs, ["found"])["found"] < 1e-5


class Wrong(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: x.reshape(3, 6), "captured by torch.export: .*static shape of 3 .*: .*fix the number of rows"),
        (lambda x: x if x.max() > 0 else -x, "Wrong cannot be captured by torch.export: .*values of tensors"),
        (lambda x: torch.from_numpy(np.sin(x.numpy())), "Wrong cannot be captured by torch.export: .*leave torch"),
        (torch.linalg.pinv, "Wrong cannot be translated to ONNX operator set 18: .*other operators"),
        (lambda x: (x, x + 1), "Wrong must return found, got 2 outputs"),
    ],
    ids=["rows fixed", "values decide", "numpy inside", "no such operator", "an output too many"],
)
def test_what_has_no_graph_is_refused_in_a_line(fn, message, tmp_path):
    with pytest.raises(ExportError, match=message) as caught:
        export_onnx(Wrong(fn), tmp_path / "net.onnx", [X], ["found"])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 24}, "opset must be between 18 and 23, got 24"),
        ({"precision": "int8"}, "precision must be one of float32, float16, got 'int8'"),
        ({"inputs": [Input("x", ("wide",))]}, "sizes must give values for 'wide', got nothing"),
    ],
)
def test_bad_arguments_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_onnx(nn.Identity(), tmp_path / "net.onnx", **{"inputs": [X], "outputs": ["found"], **options})


@pytest.mark.parametrize("size", ["8 * wide", "8.5*wide", "0*wide", "", 0, -1])
def test_an_input_of_no_such_size_is_refused(size):
    with pytest.raises(ValueError, match="x: a size must be at least 1, a name or '8\\*name', got"):
        Input("x", (3, size))


class Squeezed(nn.Module):
    """Squeezes an axis of a free size, as diffusers' PixArt does, and one of size 1."""

    def forward(self, x):
        return (x.flatten(1).squeeze(1) * 2, x[:, :, :1].squeeze(-1))


def test_an_axis_of_a_free_size_is_not_squeezed(tmp_path):
    path, given, sizes = tmp_path / "squeezed.onnx", [Input("x", (4, "width"))], {"width": (3, 5)}
    export_onnx(Squeezed(), path, given, ["flat", "first"], sizes=sizes)
    assert max(validate(path, Squeezed(), given, ["flat", "first"], sizes=sizes).values()) == 0
