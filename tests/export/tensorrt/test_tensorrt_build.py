"""Real plans of real networks, built without a GPU: each parses, builds, and keeps its types."""

import json
import math

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from onnx import TensorProto, helper, numpy_helper

import stepfuse as sf
from stepfuse.errors import PlanError
from stepfuse.export.onnx.graph import Input, export_onnx
from stepfuse.export.tensorrt import Options, Profile, Target, build_plan, find_library
from stepfuse.export.tensorrt.build import parse
from stepfuse.tensorrt.logger import logger_for

pytestmark = pytest.mark.slow  # TensorRT tries many kernels for each

ADA = Target(("8.9",))
TURING = Target(("7.5",))  # which has no float32 or bfloat16 products: TensorRT refuses the types that it must keep
AMPERE = Target(("8.0",))  # which has no float8
FASHION = sf.Bundle.load("fashion").denoiser


class First(torch.nn.Module):
    """A diffusers model, or a method of it, that returns a tensor."""

    def __init__(self, model, method="forward"):
        super().__init__()
        self.model, self.method = model, method

    def forward(self, *inputs):
        return getattr(self.model, self.method)(*inputs, return_dict=False)[0]


def _unet():
    model = UNet2DModel(
        sample_size=8,
        block_out_channels=(16, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
    )
    return First(model), [Input("sample", (3, 8, 8)), Input("timestep", (), high=1000)], {}


def _text_to_image():
    model = UNet2DConditionModel(
        block_out_channels=(16, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    sample = Input("sample", (4, "2*height", "2*width"))
    inputs = [sample, Input("timestep", (), high=1000), Input("encoder_hidden_states", (7, 16))]
    return First(model), inputs, {"height": (4, 6), "width": (4, 5)}


def _decoder():
    model = AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    return First(model, "decode"), [Input("latent", (4, "height", "width"))], {"height": (8, 12), "width": (8, 10)}


NETWORKS = {"unet": (_unet, "float32"), "text-to-image": (_text_to_image, "float16"), "decoder": (_decoder, "float16")}


@pytest.fixture(scope="module", params=NETWORKS)
def exported(request, tmp_path_factory):
    """A network's file, a profile that it takes, and its precision."""
    torch.manual_seed(0)
    make, precision = NETWORKS[request.param]
    module, inputs, sizes = make()
    file = tmp_path_factory.mktemp(request.param) / "network.onnx"
    export_onnx(module, file, inputs, ["out"], sizes=sizes, precision=precision)
    return file, Profile(rows=(1, 2, 4), sizes=((16, 16), (24, 16), (32, 32)) if sizes else None), precision


def build(onnx_file, profile=Profile(), target=ADA, **options):  # noqa: B008
    return build_plan(onnx_file, profiles=[profile], target=target, options=Options(**options), pixels_per_cell=2)


def test_an_exported_network_becomes_a_plan(exported):
    file, profile, _ = exported
    assert build(file, profile).data.nbytes > 10_000


def test_a_float16_file_is_a_float16_plan_and_a_float32_file_is_none(exported):
    file, profile, precision = exported
    if precision == "float16":
        assert build(file, profile, TURING).data.nbytes > 10_000
    else:
        with pytest.raises(PlanError, match=r"Turing.*FP32 GEMM is not supported"):
            build(file, profile, TURING)


def test_every_parameter_can_be_refitted_by_its_name_in_the_file(exported):
    file, _, _ = exported
    trt = find_library("tensorrt_rtx").module
    logger = logger_for(trt)
    builder = trt.Builder(logger)
    network = parse(trt, builder, file, logger)
    floats = TensorProto.FLOAT, TensorProto.FLOAT16
    sizes = {one.name: math.prod(one.dims) for one in onnx.load(file).graph.initializer if one.data_type in floats}
    parameters = [name for name, size in sizes.items() if name.endswith(("weight", "bias")) and size > 0]
    assert len(parameters) > 20
    assert [name for name in parameters if not network.mark_weights_refittable(name)] == []


def _typed(path, kind):
    """A product of matrices in a type, as its ONNX says it."""
    values = np.random.default_rng(0).normal(size=(64, 64))
    dtype = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float8": ml_dtypes.float8_e4m3fn}[kind]
    constants = {"w": values.astype(dtype)}
    if kind == "float8":
        constants |= {"scale": np.float32(0.1), "zero": np.zeros((), dtype)}
        nodes = [
            helper.make_node("QuantizeLinear", ["sample", "scale", "zero"], ["small"]),
            helper.make_node("DequantizeLinear", ["small", "scale"], ["a"]),
            helper.make_node("DequantizeLinear", ["w", "scale"], ["b"]),
            helper.make_node("MatMul", ["a", "b"], ["prediction"], name="product"),
        ]
    else:
        to = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        nodes = [
            helper.make_node("Cast", ["sample"], ["a"], to=to),
            helper.make_node("MatMul", ["a", "w"], ["b"], name="product"),
            helper.make_node("Cast", ["b"], ["prediction"], to=TensorProto.FLOAT),
        ]
    return _save(path, nodes, constants)


def _save(path, nodes, constants):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["R", 64]) for name in ("sample", "prediction")]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.mark.parametrize(
    ("kind", "without", "why"),
    [("bfloat16", TURING, "HW-specific datatypes: b16"), ("float8", AMPERE, "HW-specific datatypes: fp8_e4m3")],
)
def test_types_are_the_files_and_refused_where_the_gpu_lacks_them(tmp_path, kind, without, why):
    file = _typed(tmp_path / "typed.onnx", kind)
    assert build(file).data.nbytes > 10_000
    with pytest.raises(PlanError, match=why):
        build(file, target=without)


@pytest.mark.parametrize(("kind", "dtype"), [("float16", "HALF"), ("bfloat16", "BF16"), ("float8", "FP8")])
def test_the_parsed_network_has_the_files_types(tmp_path, kind, dtype):
    trt = find_library("tensorrt_rtx").module
    logger = logger_for(trt)
    builder = trt.Builder(logger)
    network = parse(trt, builder, _typed(tmp_path / "typed.onnx", kind), logger)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    assert dtype in {layer.get_output(0).dtype.name for layer in layers}
    assert network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert (network.get_input(0).dtype, network.get_output(0).dtype) == (trt.float32, trt.float32)


def test_one_plan_for_many_gpus_and_several_profiles():
    target = Target(("8.0", "8.6", "8.9", "12.0", "12.1"))
    profiles = [Profile(rows=(1, 1, 1)), Profile(rows=(2, 16, 64))]
    plan = build_plan(FASHION, profiles=profiles, target=target)
    assert plan.key.target == target
    assert json.loads(json.dumps(plan.key.config)) == plan.key.config
    assert type(plan.key).from_config(plan.key.config) == plan.key


def test_weights_beside_the_file_are_read_and_are_part_of_the_key(tmp_path):
    whole = _typed(tmp_path / "whole.onnx", "float16")
    beside = tmp_path / "beside.onnx"
    onnx.save(onnx.load(whole), beside, save_as_external_data=True, location="beside.onnx.data", size_threshold=0)
    first = build(beside)
    assert abs(first.data.nbytes - build(whole).data.nbytes) < 1000
    data = bytearray((tmp_path / "beside.onnx.data").read_bytes())
    data[0] ^= 1
    (tmp_path / "beside.onnx.data").write_bytes(data)
    assert build(beside).key.source != first.key.source


def test_a_node_that_tensorrt_does_not_know_is_named(tmp_path):
    nodes = [helper.make_node("MelodyOf", ["sample"], ["prediction"], name="tune", domain="")]
    file = _save(tmp_path / "strange.onnx", nodes, {})
    with pytest.raises(PlanError, match=r"strange\.onnx: TensorRT cannot parse it: node 'tune' \(MelodyOf\): .+"):
        build(file)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 100])
def test_a_file_that_is_no_onnx_is_refused(tmp_path, content):
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(PlanError, match=r"bad\.onnx"):
        build(tmp_path / "bad.onnx")


def test_a_file_that_is_missing_is_refused(tmp_path):
    with pytest.raises(PlanError, match=r"none\.onnx must be an ONNX file: there is none"):
        build(tmp_path / "none.onnx")


def test_sizes_that_a_network_does_not_take_are_refused():
    with pytest.raises(PlanError, match=r"sample: the network takes shape \(\?, 1, 28, 28\), got \(1, 1, 32, 32\)"):
        build(FASHION, Profile(sizes=((64, 64),) * 3))


def test_shapes_of_an_input_that_is_not_there_are_refused():
    with pytest.raises(PlanError, match="shapes: 'text' is no input: those are sample, timestep, class_labels"):
        build(FASHION, Profile(shapes={"text": ((1,), (1,), (1,))}))


def test_a_plan_needs_a_profile():
    with pytest.raises(ValueError, match="profiles must hold at least one"):
        build_plan(FASHION, profiles=[], target=ADA)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (Target(("9.0",)), {}, r"ahead of time for compute capabilities 7\.5, 8\.0, .*, got 9\.0"),
        (ADA, {"hardware": "ampere_plus"}, "hardware must be None for tensorrt_rtx, got 'ampere_plus'"),
        (ADA, {"version_compatible": True}, "version_compatible must be False: tensorrt_rtx comes without"),
    ],
)
def test_what_tensorrt_rtx_cannot_do_is_said_before_it_begins(target, options, message):
    with pytest.raises(PlanError, match=message):
        build(FASHION, target=target, **options)


def test_where_a_gpu_is_needed_to_build_the_message_says_so():
    try:
        plan = build(FASHION, refittable=True)
    except PlanError as error:  # a machine without a GPU
        assert "refittable plans are built on a machine with a GPU" in str(error)  # noqa: PT017
    else:
        assert plan.data.nbytes > 10_000


def test_bars_are_shown_while_a_plan_builds(capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    build_plan(FASHION, target=ADA, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "denoiser.onnx for compute capability 8.9, ahead of time" in err


def test_a_build_without_bars_prints_nothing(capfd):
    build_plan(FASHION, target=ADA)
    assert capfd.readouterr() == ("", "")


def test_a_timing_cache_is_not_used_by_tensorrt_rtx(tmp_path, caplog):
    caplog.set_level("INFO")
    build_plan(FASHION, target=ADA, timing_cache=tmp_path / "timing.cache")
    assert "tensorrt_rtx measures no kernels while it builds" in caplog.text
    assert list(tmp_path.iterdir()) == []
