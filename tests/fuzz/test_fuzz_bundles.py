"""Bundles whose manifest, network or tokenizer anyone may have written: loaded and run, or refused as a BundleError."""

import json

import onnx
import pytest
import support
from hypothesis import given
from hypothesis import strategies as st
from mutations import contents, contract, fuzz, json_files
from targets import load_and_sample, rewrite
from typer.testing import CliRunner

from stepfuse.cli import app


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return support.write_tiny_bundle(tmp_path_factory.mktemp("fuzzed") / "tiny").path


def test_manifests(bundle):
    original = json.loads((bundle / "manifest.json").read_text())
    original["defaults"] = {"sampler": "ddim", "steps": 4, "eta": 0.5, "guidance_scale": 2.0, "spacing": "trailing"}
    original["sampler_options"] = {"dpmpp_2m": {"karras": True}, "ddpm": {"variance": "posterior"}}
    original["export"] = {"opset": 18}

    @fuzz(3)
    @given(json_files(original))
    def check(content):
        (bundle / "manifest.json").write_bytes(content)
        load_and_sample(bundle)

    check()
    (bundle / "manifest.json").write_text(json.dumps(original))


def test_info_says_what_is_wrong_and_shows_no_traceback(bundle):
    original = (bundle / "manifest.json").read_text()
    runner = CliRunner()

    @fuzz(0.5)
    @given(json_files(json.loads(original)))
    def check(content):
        (bundle / "manifest.json").write_bytes(content)
        with contract():
            result = runner.invoke(app, ["info", str(bundle)])
            assert result.exit_code in (0, 1, 2), result.exception
            assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
            result.output.encode()
            assert not [one for one in result.output if ord(one) < 32 and one != "\n"], "control characters are shown"

    check()
    (bundle / "manifest.json").write_text(original)


@st.composite
def networks(draw, original):
    """A network file: changed bytes, or a graph with one to three things changed."""
    if draw(st.booleans()):
        return draw(contents(original))
    model = onnx.ModelProto.FromString(original)
    graph = model.graph
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["shape", "type", "name", "node", "drop", "weight", "external", "input", "domain"]))
        value = draw(st.sampled_from([*graph.input, *graph.output]))
        node = draw(st.sampled_from(list(graph.node)))
        weight = draw(st.sampled_from(list(graph.initializer)))
        if kind == "shape":
            dims = value.type.tensor_type.shape.dim
            for dim in list(dims)[: draw(st.integers(0, 2))]:
                dim.dim_value = draw(st.sampled_from([-1, 0, 1, 2, 5, 2**31, 2**62]))
        elif kind == "type":
            value.type.tensor_type.elem_type = draw(st.integers(0, 24))
        elif kind == "name":
            value.name = draw(st.sampled_from(["sample", "timestep", "x", "", "prediction"]))
        elif kind == "node":
            node.op_type = draw(
                st.sampled_from(["Add", "MatMul", "Identity", "Loop", "If", "Tile", "Expand", "Nonesuch"])
            )
        elif kind == "drop":
            graph.node.remove(node)
            if not graph.node:
                break
        elif kind == "weight":
            weight.dims[:] = draw(st.lists(st.sampled_from([-1, 0, 1, 3, 64, 2**40]), max_size=3))
        elif kind == "external":
            weight.data_location = onnx.TensorProto.EXTERNAL
            location = draw(st.sampled_from(["../x", "/etc/passwd", "manifest.json", "", "w.bin"]))
            for key, text in (("location", location), ("offset", "0"), ("length", "8")):
                weight.external_data.add(key=key, value=text)
        elif kind == "input" and node.input:
            node.input[draw(st.integers(0, len(node.input) - 1))] = draw(st.sampled_from(["", "sample", "nonesuch"]))
        else:
            node.domain = draw(st.sampled_from(["", "com.microsoft", "nonesuch"]))
    return model.SerializeToString()


def test_networks(bundle):
    original = (bundle / "denoiser.onnx").read_bytes()
    manifest = (bundle / "manifest.json").read_text()

    @fuzz(3)
    @given(networks(original))
    def check(content):
        rewrite(bundle, "denoiser.onnx", content)
        load_and_sample(bundle)

    check()
    (bundle / "denoiser.onnx").write_bytes(original)
    (bundle / "manifest.json").write_text(manifest)
