"""Int8 bundles: faster or refused, and as near to float32 as they say."""

import collections
from importlib.util import find_spec

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import support
import tolerances
from onnx import numpy_helper
from typer.testing import CliRunner

import stepfuse as sf
from stepfuse.analysis import Statistics, frechet_distance
from stepfuse.backends.host.available import precisions_of
from stepfuse.cli import app
from stepfuse.export import ExportError
from stepfuse.export.quantization import trial as quantization_trial
from stepfuse.export.quantization.quantize import OPERATORS, quantize
from stepfuse.export.quantization.trial import Candidate
from stepfuse.export.quantization.ways import Way

QUICK = {
    "samples": 4,
    "steps": 4,
    "rows": (2,),
    "rounds": 1,
    "threads": 1,
    "method": "static",
    "backends": ["onnxruntime"],
}
OWN = precisions_of("openvino")
BOTH = {**QUICK, "method": "auto", "backends": None}
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="needs OpenVINO")


@pytest.fixture(scope="module", params=["static", "dynamic"])
def method(request):
    return request.param


@pytest.fixture(scope="module")
def int8(method, tmp_path_factory):
    return quantize("fashion", tmp_path_factory.mktemp("int8") / method, force=True, **{**QUICK, "method": method})


@pytest.fixture
def timed(monkeypatch):
    """Says how long forwards take: tests of what follows from it must not depend on the machine."""

    def set_times(before, after, **others):
        """Of float32 in ONNX Runtime, of int8 in any way, and of ``{network}_in_{way}``."""

        def times(one, *_):
            other = others.get(f"{one.network}_in_{one.way}".replace(" ", "_"))
            return before, other or (before if one.network == "float32" else after)

        monkeypatch.setattr(quantization_trial, "_alternately", times)

    return set_times


def test_matrix_products_compute_in_int8_and_the_ends_do_not(method, int8):
    graph = onnx.load(int8.denoiser).graph
    made = {name: node for node in graph.node for name in node.output}
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    if method == "dynamic":
        assert collections.Counter(node.op_type for node in graph.node)["MatMulInteger"] >= 10
        return
    kept = int8.export["quantization"]["kept_float32"]
    assert kept == [node.name for node in graph.node if node.op_type == "Conv" and node.input[1] in weights]
    quantised = [node for node in graph.node if node.op_type in OPERATORS["static"] and node.name not in kept]
    assert len(quantised) >= 30
    for node in quantised:
        assert made[node.input[0]].op_type == "DequantizeLinear"
        sources = made[node.input[1]]
        assert sources.op_type == "DequantizeLinear"
        assert weights.get(sources.input[0], onnx.TensorProto.INT8) == onnx.TensorProto.INT8


def test_weights_are_within_half_a_step_of_their_channel(tmp_path, timed):
    timed(2.0, 1.0)
    graph = onnx.load(quantize("fashion", tmp_path / "int8", **QUICK).denoiser).graph
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    before = onnx.load(sf.Bundle.load("fashion").denoiser).graph.initializer
    compared = 0
    for tensor in before:
        if (quantised := found.get(f"{tensor.name}_quantized")) is None or quantised.ndim != 4:
            continue
        scale = found[f"{tensor.name}_scale"].reshape(-1, 1, 1, 1)
        error = np.abs(quantised * scale - numpy_helper.to_array(tensor))
        assert (error <= scale * tolerances.INT8_WEIGHT).all()
        compared += 1
    assert compared >= 15


def test_inputs_and_output_stay_as_they_were(int8):
    def interface(path):
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        return [(node.name, node.type) for node in (*session.get_inputs(), *session.get_outputs())]

    assert interface(int8.denoiser) == interface(sf.Bundle.load("fashion").denoiser)
    assert int8.info.cond["class_labels"].names == sf.Bundle.load("fashion").info.cond["class_labels"].names


def test_the_errors_are_those_that_a_user_would_find(int8):
    noted = int8.export["quantization"]
    arguments = {"cond": [0, 1, 2, 3], "steps": 4, "seed": 1}
    with sf.Engine.load("fashion", threads=1) as engine:
        before = engine.sample(4, **arguments)
    with sf.Engine.load(int8, threads=1) as engine:
        after = engine.sample(4, **arguments)
    found = np.sqrt(np.mean((after - before) ** 2)) / 2
    assert noted["image_error"] == pytest.approx(found, rel=0.02)
    assert 0 < found < tolerances.INT8_IMAGE
    assert len(noted["prediction_error"]) == 4
    assert noted["prediction_error"][0] < tolerances.INT8_NOISY_PREDICTION


def test_openvino_computes_what_onnxruntime_does_in_int8(int8, method, tmp_path):
    pytest.importorskip("openvino")
    arguments = {"cond": [0, 1], "steps": 4, "seed": 1}
    with sf.Engine.load(int8, threads=1) as engine:
        expected = engine.sample(2, **arguments)
    with sf.Engine.load(int8, threads=1, backend=sf.OpenVino(cache=tmp_path)) as engine:
        found = engine.sample(2, **arguments)
    assert np.sqrt(np.mean((found - expected) ** 2)) / 2 < tolerances.INT8_IMAGE


def test_what_is_not_faster_is_refused_with_the_figures(tmp_path, timed):
    timed(2.0, 1.95)
    expected = r"static int8 .* 1\.05 times as fast .* got 1\.03 at 2 rows \(2\.00 ms, now 1\.95\).*method='dynamic'"
    with pytest.raises(ExportError, match=expected):
        quantize("fashion", tmp_path / "int8", **QUICK)
    assert not list(tmp_path.iterdir())


def test_what_is_forced_says_that_it_is_not_faster(tmp_path, timed):
    timed(2.0, 4.0)
    bundle = quantize("fashion", tmp_path / "int8", force=True, **QUICK)
    assert bundle.export["quantization"]["faster"] is False
    assert bundle.export["quantization"]["milliseconds"] == {"2": {"float32": 2.0, "int8": 4.0}}


def test_what_is_faster_is_written(tmp_path, timed):
    timed(2.0, 1.0)
    bundle = quantize("fashion", tmp_path / "int8", name="small", **QUICK)
    assert (bundle.name, bundle.export["quantization"]["faster"]) == ("small", True)
    assert bundle.licence == sf.Bundle.load("fashion").licence
    with pytest.raises(ExportError, match="is quantised already"):
        quantize(bundle, tmp_path / "again", **QUICK)


@needs_openvino
def test_the_fastest_of_all_ways_is_kept(tmp_path, timed):
    timed(4.0, 3.0, float32_in_openvino=3.6, static_in_openvino=1.8, dynamic_in_openvino=2.0)
    bundle = quantize("fashion", tmp_path / "int8", **BOTH)
    noted = bundle.export["quantization"]
    assert (noted["method"], noted["backend"], noted["precision"]) == ("static", "openvino", "float32")
    assert noted["milliseconds"] == {"2": {"float32": 3.6, "int8": 1.8}}  # the fastest of each
    assert noted["ways"]["onnxruntime"] == {"float32": {"2": 4.0}, "static": {"2": 3.0}, "dynamic": {"2": 3.0}}
    assert set(noted["ways"]) == {"onnxruntime", "openvino", *(["openvino bf16"] if "bf16" in OWN else [])}
    assert "as_fast_without" not in noted
    assert {path.name for path in bundle.path.iterdir()} == {*bundle.files, "manifest.json"}
    assert sum(node.op_type == "QuantizeLinear" for node in onnx.load(bundle.denoiser).graph.node) >= 30


@needs_openvino
def test_int8_has_to_be_faster_than_the_fastest_float32(tmp_path, timed):
    timed(4.0, 3.0, float32_in_openvino=3.1)
    with pytest.raises(
        ExportError, match=r"got 1\.03 at 2 rows \(3\.10 ms, now 3\.00\): keep the float32 bundle or pass"
    ):
        quantize("fashion", tmp_path / "int8", **BOTH)
    assert not list(tmp_path.iterdir())


@needs_openvino
@pytest.mark.skipif("bf16" not in OWN, reason="this processor does not compute in bf16")
def test_what_is_as_fast_without_int8_is_said(tmp_path, timed):
    timed(4.0, 2.0, float32_in_openvino_bf16=1.9)
    assert quantize("fashion", tmp_path / "int8", **BOTH).export["quantization"]["as_fast_without"] == "openvino bf16"


def test_the_fastest_whose_images_are_near_is_kept(tmp_path, timed, monkeypatch):
    timed(4.0, 3.0, static_in_onnxruntime=2.0)
    far = Candidate("static", Way())
    monkeypatch.setattr(quantization_trial, "DOUBTFUL", 0.01)  # between the two methods' errors
    noted = quantize("fashion", tmp_path / "int8", **{**QUICK, "method": "auto"}).export["quantization"]
    assert noted["method"] == "dynamic"
    assert noted["ways"]["onnxruntime"]["static"] == {"2": 2.0}
    monkeypatch.setattr(quantization_trial, "DOUBTFUL", 1e-9)
    times = {far: {2: 2.0}, Candidate("dynamic", Way()): {2: 3.0}, Candidate("float32", Way()): {2: 4.0}}
    errors = {far: 0.3, Candidate("dynamic", Way()): 0.4}
    assert quantization_trial._chosen(list(errors), times, errors.__getitem__) == (far, 0.3)  # the nearest, if none is


def test_a_method_that_has_nothing_to_do_is_left_out(tmp_path, timed):
    timed(4.0, 3.0)
    graph = onnx.load(sf.Bundle.load("fashion").denoiser).graph
    products = [node.name for node in graph.node if node.op_type in OPERATORS["dynamic"]]
    noted = quantize("fashion", tmp_path / "int8", keep=products, **{**QUICK, "method": "auto"}).export["quantization"]
    assert set(noted["ways"]["onnxruntime"]) == {"float32", "static"}


def test_a_way_that_fails_is_noted_and_the_others_count(tmp_path, timed, monkeypatch):
    timed(4.0, 3.0)
    opened = quantization_trial.open_way

    def open_way(network, way, threads):
        if "dynamic" in str(network.path):
            raise RuntimeError("no such operator")
        return opened(network, way, threads)

    monkeypatch.setattr(quantization_trial, "open_way", open_way)
    noted = quantize("fashion", tmp_path / "int8", **{**QUICK, "method": "auto"}).export["quantization"]
    assert (noted["method"], noted["failed"]) == ("static", {"dynamic in onnxruntime": "no such operator"})
    with pytest.raises(ExportError, match="can be used: dynamic in onnxruntime: no such operator"):
        quantize("fashion", tmp_path / "none", **{**QUICK, "method": "dynamic"})


def test_files_are_written_once_and_hashed_once(tmp_path, timed, written):
    timed(2.0, 1.0)
    bundle = quantize(sf.Bundle.load("fashion", verify=False), tmp_path / "int8", **QUICK)
    assert sorted(written.hashed) == sorted(bundle.files)
    assert written.peak_bytes == sum(file["size"] for file in bundle.files.values())
    assert sf.Bundle.load(bundle.path).files == bundle.files


def test_the_distance_is_that_of_the_images(tmp_path, timed):
    timed(2.0, 1.0)
    judged = []

    def features(images):
        judged.append(images)
        return images.reshape(len(images), -1)[:, 300:304]

    reference = Statistics(mean=np.zeros(4), cov=np.eye(4), count=100)
    bundle = quantize("fashion", tmp_path / "int8", judge=features, reference=reference, judged_samples=12, **QUICK)
    found = bundle.export["quantization"]["frechet_distance"]
    assert len(judged) == 2
    for images, kind in zip(judged, ("float32", "int8"), strict=True):
        moments = Statistics.of(images.reshape(12, -1)[:, 300:304])
        assert found[kind] == frechet_distance(moments, reference)
    with sf.Engine.load("fashion", threads=1) as engine:
        expected = engine.sample(12, cond=[*range(10), 0, 1], steps=4, seed=1)
    np.testing.assert_allclose(judged[0], expected, atol=tolerances.BATCH_ONNXRUNTIME * 10)


def test_nothing_is_said_on_the_way(tmp_path, timed, capfd, caplog):
    timed(2.0, 1.0)
    quantize("fashion", tmp_path / "int8", **QUICK)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@pytest.mark.slow
def test_a_pipeline_is_quantised_on_what_its_prompts_become(exported, tmp_path, timed):
    timed(2.0, 1.0)
    bundle = exported("StableDiffusionPipeline")
    with sf.TextToImage.load(bundle, threads=1) as pipe:
        conditioning, negative = pipe.encode_prompt(["a cat", "", "dog", "red"]), pipe.encode_prompt("")
    negative = {name: values[0] for name, values in negative.items()}
    seen = []

    def features(images):
        seen.append(images)
        return images.reshape(len(images), -1)[:, :3]

    judge = {"judge": features, "reference": Statistics(np.zeros(3), np.eye(3), 9), "judged_samples": 6}
    int8 = quantize(bundle, tmp_path / "int8", cond=conditioning, negative_cond=negative, **judge, **QUICK)
    assert int8.pipeline == bundle.pipeline
    assert set(int8.files) == set(bundle.files)
    with sf.Engine.load(bundle, threads=1) as engine:
        conditioning = {name: [*values, *values[:2]] for name, values in conditioning.items()}
        expected = engine.sample(6, cond=conditioning, negative_cond=negative, steps=4, seed=1)
    np.testing.assert_allclose(seen[0], expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "int4"}, ValueError, "method must be one of auto, static, dynamic, got 'int4'"),
        ({"backends": ["torch"]}, ValueError, "backends must be among those installed, onnxruntime.*, got 'torch'"),
        ({"backends": "openvino"}, ValueError, "backends must list some of onnxruntime, openvino, got 'openvino'"),
        ({"backends": []}, ValueError, r"backends must list some of onnxruntime, openvino, got \[\]"),
        ({"calibration": "mean"}, ValueError, "calibration must be one of percentile, minmax, entropy, got 'mean'"),
        ({"rows": ()}, ValueError, "rows must name a number of rows to measure, got none"),
        ({"rows": (2, 0)}, ValueError, "rows must be at least 1, got 0"),
        ({"keep": ["conv_of_dreams"]}, ExportError, "keep must name nodes of the network, got conv_of_dreams"),
        (
            {"operators": ["Einsum"]},
            ExportError,
            r"operators must name some that the network has .*Conv.*got \['Einsum",
        ),
    ],
)
def test_bad_arguments(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        quantize("fashion", tmp_path / "int8", **{**QUICK, **arguments})
    assert not list(tmp_path.iterdir())


def test_a_bundle_that_is_there_is_not_replaced_unasked(tmp_path):
    there = support.write_tiny_bundle(tmp_path / "tiny")
    with pytest.raises(ExportError, match="exists already: pass overwrite=True"):
        quantize("fashion", there.path, **QUICK)


def test_runs_need_conditioning_that_is_no_class(tmp_path):
    text = sf.CondInput(dtype="float32", shape=(2,), null=0.0)
    bundle = support.write_tiny_bundle(tmp_path / "tiny", cond={"text": text})
    with pytest.raises(ExportError, match=r"cond must give the conditioning of the runs.*takes text"):
        quantize(bundle, tmp_path / "int8", **QUICK)


def test_the_command_says_what_is_gained(tmp_path, timed):
    command = ["--threads", "1", "--backend", "onnxruntime"]
    timed(3.0, 1.5, dynamic_in_onnxruntime=2.0)
    result = CliRunner().invoke(app, ["quantize", "fashion", "-o", str(tmp_path / "int8"), *command])
    assert result.exit_code == 0, result.output
    assert "16 rows: 3.00 ms in float32, 1.50 ms in int8, 2.00 times as fast" in result.output
    assert "the fastest that is near enough: static, drawn with --backend onnxruntime" in result.output
    assert "of the data range" in result.output
    timed(3.0, 3.0)
    result = CliRunner().invoke(app, ["quantize", "fashion", "-o", str(tmp_path / "slow"), *command])
    assert (result.exit_code, (tmp_path / "slow").exists()) == (1, False)
    assert "int8 must be at least 1.05 times as fast" in result.output


@needs_openvino
def test_the_command_says_how_it_is_fastest(tmp_path, timed):
    timed(4.0, 3.0, static_in_openvino=1.0)
    result = CliRunner().invoke(app, ["quantize", "fashion", "-o", str(tmp_path / "int8"), "--threads", "1"])
    assert result.exit_code == 0, result.output
    assert "near enough: static, drawn with --backend openvino" in result.output
