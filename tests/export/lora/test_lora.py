"""LoRAs: fused as diffusers and PEFT apply them, under every style of key, and taken out again to the byte."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tolerances
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_kohya
from onnx import numpy_helper
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel
from typer.testing import CliRunner

import stepfuse as sf
from stepfuse.bundle.bundle import write_bundle
from stepfuse.cli import app
from stepfuse.export import ExportError
from stepfuse.export.lora.fuse import fuse_lora, lora_weights, unfuse_lora
from stepfuse.export.onnx.graph import Input, export_onnx
from stepfuse.export.quantization.quantize import quantize
from stepfuse.lora.file import Lora

CROSS, TOKENS, SHAPE = 12, 5, (4, 8, 8)
LINEAR = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "time_emb_proj", "linear_1", "linear_2"]
CONVOLUTIONS = ["proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "conv_in", "conv_out"]


class Network(torch.nn.Module):
    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, sample, timestep, encoder_hidden_states):
        return self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]


class TextEncoder(torch.nn.Module):
    def __init__(self, text_encoder):
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids):
        return self.text_encoder(input_ids)[0]


def make_unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=CROSS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


def make_text_encoder():
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=40,
        hidden_size=CROSS,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=0,
        eos_token_id=39,
        pad_token_id=39,
    )
    return CLIPTextModel(config).eval()


def make_bundle(folder, precision="float32"):
    inputs = [Input("sample", SHAPE), Input("timestep", (), high=1000), Input("encoder_hidden_states", (TOKENS, CROSS))]
    ids = [Input("input_ids", (TOKENS,), "int64", high=40)]
    files = {}
    for name, module, given, output, prefix in (
        ("denoiser.onnx", Network(make_unet()), inputs, "prediction", "unet."),
        ("text_encoder.onnx", TextEncoder(make_text_encoder()), ids, "encoder_hidden_states", ""),
    ):
        files |= export_onnx(module, folder / name, given, [output], prefix=prefix, precision=precision).files
    return write_tiny(folder / "bundle", files, precision)


def write_tiny(folder, files, precision):
    cond = {"encoder_hidden_states": sf.CondInput(dtype="float32", shape=(TOKENS, CROSS), null=0.0)}
    info = sf.ModelInfo(SHAPE, sf.NoiseSchedule.scaled_linear(), cond=cond)
    said = {"provenance": "random", "licence": "none", "export": {"precision": precision}}
    return write_bundle(folder, name="tiny", info=info, files=files, **said)


@pytest.fixture(scope="module")
def bundle(kept):
    """A denoiser and its text encoder."""
    return sf.Bundle.load(kept("lora-float32", make_bundle) / "bundle")


@pytest.fixture(scope="module")
def half(kept):
    """The same in float16."""
    return sf.Bundle.load(kept("lora-float16", lambda folder: make_bundle(folder, "float16")) / "bundle")


@pytest.fixture(scope="module")
def external(bundle, tmp_path_factory):
    """The same with all weights in files of their own, as the onnx package writes them."""
    folder = tmp_path_factory.mktemp("external")
    for name in bundle.files:
        beside = {"save_as_external_data": True, "location": f"{name}.data", "size_threshold": 0}
        onnx.save_model(onnx.load(bundle.path / name), folder / name, **beside)
    return write_tiny(folder / "bundle", {path.name: path for path in folder.iterdir()}, "float32")


def random_lora(module, targets, prefix, *, alpha, rank=3, **options):
    """What PEFT would save of a LoRA on these layers, with diffusers' name of the module in front."""
    torch.manual_seed(2)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights=False, **options)
    inject_adapter_in_model(config, module)  # a transformers model's add_adapter may ask for a newer PEFT
    state = {f"{prefix}.{key}": value.contiguous() for key, value in get_peft_model_state_dict(module).items()}
    return state, {f"{prefix}.{key}": value for key, value in config.to_dict().items()}


def unet_lora(targets=(*LINEAR, *CONVOLUTIONS), alpha=6, **options):
    return random_lora(make_unet(), list(targets), "unet", alpha=alpha, **options)


def text_lora(targets=("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"), alpha=6):
    """With ``text_model.`` in the keys, as every published file has it."""
    state, metadata = random_lora(make_text_encoder(), list(targets), "text_encoder", alpha=alpha)
    return {key.replace("encoder.encoder", "encoder.text_model.encoder"): one for key, one in state.items()}, metadata


def as_peft(path):
    state, metadata = unet_lora()
    text, text_metadata = text_lora()
    said = json.dumps({**metadata, **text_metadata}, default=list)
    save_file({**state, **text}, path, metadata={"format": "pt", "lora_adapter_metadata": said})


def as_rank_stabilised(path):
    state, metadata = unet_lora(
        LINEAR, use_rslora=True, alpha_pattern={"to_q": 2, "mid_block.attentions.0.transformer_blocks.0.attn1.to_k": 1}
    )
    save_file(state, path, metadata={"format": "pt", "lora_adapter_metadata": json.dumps(metadata, default=list)})


def as_peft_without_alpha(path):
    save_file(unet_lora()[0], path)


def as_down_and_up(path):
    names = {".lora_A.": ".lora.down.", ".lora_B.": ".lora.up."}
    save_file({renamed(key, names): value for key, value in unet_lora()[0].items()}, path)


def as_attention_processors(path):
    """The first style of diffusers: of attention alone, each matrix beside the processor."""
    names = {f".to_{one}.lora_{half}.": f".processor.to_{one}_lora.{way}." for one in "qkv" for half, way in WAYS}
    names |= {f".to_out.0.lora_{half}.": f".processor.to_out_lora.{way}." for half, way in WAYS}
    state = {renamed(key, names): value for key, value in unet_lora(["to_q", "to_k", "to_v", "to_out.0"])[0].items()}
    save_file(state, path)


def as_kohya(path):
    state = convert_state_dict_to_kohya({**unet_lora()[0], **text_lora()[0]})
    save_file({key: torch.tensor(1.5) if key.endswith(".alpha") else value for key, value in state.items()}, path)


def as_kohya_in_bfloat16(path):
    as_kohya(path)
    save_file({key: value.to(torch.bfloat16) for key, value in load_file(path).items()}, path)


def as_kohya_by_original_names(path):
    """Stable Diffusion's first names of modules, which kohya's scripts write for SDXL."""
    names = {
        "input_blocks_1_1": "down_blocks.0.attentions.0",
        "input_blocks_3_0_in_layers_2": "down_blocks.1.resnets.0.conv1",
        "input_blocks_3_0_emb_layers_1": "down_blocks.1.resnets.0.time_emb_proj",
        "input_blocks_3_0_skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
        "input_blocks_2_0_op": "down_blocks.0.downsamplers.0.conv",
        "middle_block_0_out_layers_3": "mid_block.resnets.0.conv2",
        "middle_block_1": "mid_block.attentions.0",
        "middle_block_2_in_layers_2": "mid_block.resnets.1.conv1",
        "output_blocks_1_0_out_layers_3": "up_blocks.0.resnets.1.conv2",
        "output_blocks_2_1": "up_blocks.1.attentions.0",
        "time_embed_0": "time_embedding.linear_1",
        "time_embed_2": "time_embedding.linear_2",
        "input_blocks_0_0": "conv_in",
        "out_2": "conv_out",
    }
    state = {}
    for key, value in unet_lora()[0].items():
        for old, new in names.items():
            if key.startswith(f"unet.{new}."):
                module, half, _ = key.removeprefix(f"unet.{new}").rsplit(".", 2)
                way = {"lora_A": "lora_down", "lora_B": "lora_up"}[half]
                state[f"lora_unet_{old}{module.replace('.', '_')}.{way}.weight"] = value
                state[f"lora_unet_{old}{module.replace('.', '_')}.alpha"] = torch.tensor(2.0)
    assert len(state) > 3 * len(names)
    save_file(state, path)


WAYS = (("A", "down"), ("B", "up"))


def renamed(key, names):
    for old, new in names.items():
        key = key.replace(old, new)
    return key


STYLES = [
    as_peft,
    as_rank_stabilised,
    as_peft_without_alpha,
    as_down_and_up,
    as_attention_processors,
    as_kohya,
    as_kohya_in_bfloat16,
    as_kohya_by_original_names,
]


@pytest.fixture(params=STYLES, ids=lambda style: style.__name__.removeprefix("as_"))
def lora(request, tmp_path):
    path = tmp_path / "style.safetensors"
    request.param(path)
    return path


@pytest.fixture
def kohya(tmp_path):
    as_kohya(tmp_path / "kohya.safetensors")
    return tmp_path / "kohya.safetensors"


def in_diffusers(paths, scale):
    """Prediction and embedding with LoRAs as diffusers loads and applies them."""
    unet, text_encoder = make_unet(), make_text_encoder()
    for index, path in enumerate(paths):
        kind = StableDiffusionXLPipeline if "_0_in_layers_" in str(list(load_file(path))) else StableDiffusionPipeline
        state, alphas, metadata = kind.lora_state_dict(path, unet_config=unet.config, return_lora_metadata=True)
        kind.load_lora_into_unet(state, alphas, unet, adapter_name=f"a{index}", metadata=metadata)
        kind.load_lora_into_text_encoder(state, alphas, text_encoder, adapter_name=f"a{index}", metadata=metadata)
    with torch.no_grad():
        unet.set_adapters([f"a{index}" for index in range(len(paths))], [scale] * len(paths))
        for layer in text_encoder.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.set_adapter([f"a{index}" for index in range(len(paths))])
                layer.scale_layer(scale)
        x, t, context, ids = map(torch.from_numpy, inputs().values())
        return unet(x, t, context).sample.numpy(), text_encoder(ids)[0].numpy()


def inputs():
    rng = np.random.default_rng(5)
    return {
        "sample": rng.standard_normal((2, *SHAPE)).astype(np.float32),
        "timestep": np.float32([3, 700]),
        "encoder_hidden_states": rng.standard_normal((2, TOKENS, CROSS)).astype(np.float32),
        "input_ids": rng.integers(0, 39, (2, TOKENS)),
    }


def in_bundle(bundle):
    given = inputs()
    ids = {"input_ids": given.pop("input_ids")}
    networks = [ort.InferenceSession(bundle.path / name) for name in ("denoiser.onnx", "text_encoder.onnx")]
    return [network.run(None, feed)[0] for network, feed in zip(networks, (given, ids), strict=True)]


def digests(bundle):
    return {name: entry["sha256"] for name, entry in bundle.files.items()}


@pytest.mark.parametrize("scale", [1.0, -0.4])
def test_a_fused_lora_is_what_diffusers_applies(bundle, lora, tmp_path, scale):
    fused = in_bundle(fuse_lora(bundle, lora, tmp_path / "fused", scale=scale))
    for ours, theirs, plain in zip(fused, in_diffusers([lora], scale), in_bundle(bundle), strict=True):
        assert np.abs(ours - theirs).max() < tolerances.LORA * np.abs(theirs).max()
        if not np.array_equal(ours, plain):
            assert np.abs(theirs - plain).max() > 100 * tolerances.LORA * np.abs(theirs).max()
    assert not np.array_equal(fused[0], in_bundle(bundle)[0])


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("bundle", {"denoiser.onnx", "text_encoder.onnx"}),
        pytest.param("half", {"denoiser.onnx", "text_encoder.onnx"}, marks=pytest.mark.slow),
        ("external", {"denoiser.onnx.data", "text_encoder.onnx.data"}),
    ],
)
def test_what_is_taken_out_leaves_the_bytes_that_were(request, kind, changed, kohya, tmp_path):
    given = request.getfixturevalue(kind)
    fused = fuse_lora(given, kohya, tmp_path / "fused", scale=0.7)
    assert {name for name, digest in digests(given).items() if digests(fused)[name] != digest} == changed
    restored = unfuse_lora(fused, tmp_path / "restored")
    assert digests(restored) == digests(given)
    manifests = [json.loads((one.path / "manifest.json").read_text()) for one in (restored, given)]
    assert manifests[0] == manifests[1]


def test_float16_weights_are_rounded_once(half, kohya):
    changed = lora_weights(half, kohya, scale=0.5)
    unet, state = make_unet(), load_file(kohya)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    key = f"lora_unet_{name.replace('.', '_')}"
    before = unet.get_submodule(name).weight.detach().to(torch.float16).float()
    delta = state[f"{key}.lora_up.weight"] @ state[f"{key}.lora_down.weight"]
    expected = (before + 0.5 * 1.5 / 3 * delta).to(torch.float16).numpy()
    found = changed[f"{name}.weight"]
    assert found.dtype == np.float16
    assert (
        np.mean(expected != found.T) < 0.02
    )  # where float32 sums taken in another order fall on the other side of a tie


def test_loras_stack_and_are_all_taken_out(bundle, kohya, tmp_path):
    as_peft_without_alpha(tmp_path / "second.safetensors")
    second = tmp_path / "second.safetensors"
    out = tmp_path / "fused"
    fuse_lora(bundle, kohya, out, scale=0.5)
    both = fuse_lora(out, second, out, scale=0.5, overwrite=True)
    assert both.export["loras"] == [
        {"name": path.stem, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "scale": 0.5}
        for path in (kohya, second)
    ]
    assert both.export["precision"] == "float32"
    ours, theirs = in_bundle(both)[0], in_diffusers([kohya, second], 0.5)[0]
    assert np.abs(ours - theirs).max() < tolerances.LORA * np.abs(theirs).max()
    assert digests(unfuse_lora(both, out, overwrite=True)) == digests(bundle)


def test_files_are_copied_once_and_hashed_once(bundle, kohya, written, tmp_path):
    fused = fuse_lora(bundle, kohya, tmp_path / "fused")
    assert sorted(written.hashed) == sorted(fused.files)
    assert written.peak_bytes == sum(file["size"] for file in fused.files.values())
    assert sf.Bundle.load(fused.path).files == fused.files


def test_the_weights_for_a_refit_are_those_that_are_fused(bundle, kohya, tmp_path):
    fused = fuse_lora(bundle, kohya, tmp_path / "fused", scale=2.0)
    held = {one.name: numpy_helper.to_array(one) for one in onnx.load(fused.denoiser).graph.initializer}
    changed = lora_weights(bundle, kohya, scale=2.0)
    assert len(changed) == sum(key.startswith("lora_unet") and ".lora_down" in key for key in load_file(kohya))
    for name, values in changed.items():
        np.testing.assert_array_equal(values, held[name])
    assert set(lora_weights(bundle, kohya, model="text_encoder.onnx")) < {
        one.name for one in onnx.load(bundle.path / "text_encoder.onnx").graph.initializer
    }


def test_a_lora_of_another_base_is_refused_by_its_width(bundle, tmp_path):
    state = {}
    for index in range(5):
        key = f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_{index}_attn2_to_k"
        state |= {f"{key}.lora_down.weight": torch.ones(2, 2048), f"{key}.lora_up.weight": torch.ones(8, 2)}
    path = tmp_path / "xl.safetensors"
    save_file(state, path)
    with pytest.raises(ExportError) as error:
        fuse_lora(bundle, path, tmp_path / "fused")
    assert "0 of 5 pairs do" in str(error.value)
    assert "blocks_1_attn2_to_k" in str(error.value)
    assert "and 1 more" in str(error.value)
    assert "_0_attn2_to_k ((8, 2048) for (8, 12))" in str(error.value)
    assert "Stable Diffusion XL (cross-attention of width 2048)" in str(error.value)
    assert "this network has cross-attention of width 12" in str(error.value)
    assert not (tmp_path / "fused").exists()


def test_what_fits_is_fused_when_asked(bundle, kohya, tmp_path, caplog):
    state = load_file(kohya)
    save_file(
        {
            **state,
            "lora_unet_nowhere.lora_down.weight": torch.ones(1, 4),
            "lora_unet_nowhere.lora_up.weight": torch.ones(4, 1),
        },
        tmp_path / "more.safetensors",
    )
    with pytest.raises(ExportError, match="this pipeline has no lora_unet_nowhere"):
        fuse_lora(bundle, tmp_path / "more.safetensors", tmp_path / "fused")
    with caplog.at_level("WARNING", "stepfuse"):
        some = fuse_lora(bundle, tmp_path / "more.safetensors", tmp_path / "fused", strict=False)
    assert "pairs fit" in caplog.text
    all_of_it = fuse_lora(bundle, kohya, tmp_path / "all")
    assert digests(some) == digests(all_of_it)


PAIR = {"lora_unet_conv_in.lora_down.weight": (2, 4, 3, 3), "lora_unet_conv_in.lora_up.weight": (8, 2, 1, 1)}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"lora_unet_conv_in.dora_scale": (8,)}, "got DoRA"),
        ({"unet.conv_in.lora_magnitude_vector.weight": (8,)}, "got DoRA"),
        ({"lora_unet_conv_out.hada_w1_a": (2, 2)}, "got LoHa"),
        ({"lora_unet_conv_out.lokr_w1": (2, 2)}, "got LoKr"),
        ({"lora_unet_conv_out.lora_mid.weight": (2, 2, 3, 3)}, "got LoCon with a Tucker core"),
        ({"lora_unet_conv_out.diff_b": (4,)}, "got a full difference of weights"),
        ({"unet.conv_in.lora_B.bias": (8,)}, "got a LoRA with biases"),
        ({"lora_unet_conv_out.lora_down.weight": (2, 8)}, "lora_unet_conv_out must have both matrices"),
        ({"lora_unet_conv_in.lora_up.weight": (8, 3, 1, 1)}, r"got \(2, 4, 3, 3\), \(8, 3, 1, 1\)"),
        ({"clip_g.something": (1,)}, "this pipeline has no clip_g.something"),
        ({"lora_unet_conv_out.alpha": (1,)}, "this pipeline has no lora_unet_conv_out.alpha"),
    ],
)
def test_adapters_of_other_kinds_are_named(bundle, tmp_path, extra, message):
    path = tmp_path / "adapter.safetensors"
    save_file({key: torch.ones(shape) for key, shape in {**PAIR, **extra}.items()}, path)
    with pytest.raises(ExportError, match=message):
        fuse_lora(bundle, path, tmp_path / "fused")


def test_files_that_are_no_lora(bundle, tmp_path):
    for name, content, message in (
        ("a.bin", b"", "must be a .safetensors file, got .*a.bin: pickled ones are not read"),
        ("a.safetensors", b"PK", "must be a safetensors file"),
        ("empty.safetensors", b"\x02\0\0\0\0\0\0\0{}", "must hold pairs of matrices of a LoRA, got no keys"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ExportError, match=message):
            fuse_lora(bundle, tmp_path / name, tmp_path / "fused")
    with pytest.raises(ExportError, match="which is not there"):
        fuse_lora(bundle, tmp_path / "b.safetensors", tmp_path / "fused")


def test_a_scale_of_numpy_s_is_recorded_as_a_number(bundle, kohya, tmp_path):
    fused = fuse_lora(bundle, kohya, tmp_path / "fused", scale=np.float32(0.5))
    assert fused.export["loras"][-1]["scale"] == 0.5
    with pytest.raises(TypeError, match="scale must be a number, got True"):
        fuse_lora(bundle, kohya, tmp_path / "other", scale=True)


def test_numbers_that_are_not_finite(bundle, kohya, tmp_path):
    with pytest.raises(ValueError, match="scale must be finite, got nan"):
        fuse_lora(bundle, kohya, tmp_path / "fused", scale=float("nan"))
    save_file({key: value * torch.nan for key, value in load_file(kohya).items()}, kohya)
    with pytest.raises(ExportError, match="must be finite numbers"):
        fuse_lora(bundle, kohya, tmp_path / "fused")


def test_a_scale_too_large_for_float16_leaves_nothing(half, kohya, tmp_path):
    with pytest.raises(ExportError, match=r"scale 1e\+06 must leave float16 weights finite"):
        fuse_lora(half, kohya, tmp_path / "fused", scale=1e6)
    assert not (tmp_path / "fused").exists()


def test_bundles_of_other_exporters_are_refused(kohya, tmp_path):
    with pytest.raises(ExportError, match="must say which weights it holds transposed"):
        fuse_lora("fashion", kohya, tmp_path / "fused")


def test_a_bundle_in_int8_takes_no_lora(kohya, tmp_path):
    options = {"samples": 1, "steps": 1, "rows": (1,), "rounds": 1, "force": True}
    int8 = quantize("fashion", tmp_path / "int8", method="dynamic", **options)
    with pytest.raises(ExportError, match=r"int8 is in int8, .*: fuse it first, then quantize"):
        fuse_lora(int8, kohya, tmp_path / "fused")


def test_a_manifest_of_damaged_loras_is_refused(bundle, kohya, tmp_path):
    damaged = replace(bundle, export={**bundle.export, "loras": True})
    with pytest.raises(sf.BundleError, match="export: loras must be a list, got bool"):
        fuse_lora(damaged, kohya, tmp_path / "fused")


def test_there_must_be_a_lora_to_take_out(bundle, tmp_path):
    with pytest.raises(ExportError, match="must hold weights from before a LoRA"):
        unfuse_lora(bundle, tmp_path / "restored")


def test_keys_without_a_known_prefix_are_the_denoisers(tmp_path):
    save_file(
        {"mid_block.conv.lora_A.weight": torch.ones(1, 4), "mid_block.conv.lora_B.weight": torch.ones(4, 1)},
        tmp_path / "a.safetensors",
    )
    [pair] = Lora.read(tmp_path / "a.safetensors").pairs
    assert (pair.part, pair.module, pair.scale) == ("denoiser", "mid_block_conv", 1.0)


def test_the_command_fuses_and_takes_out(bundle, kohya, tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, ["lora", *map(str, arguments)])

    fused = run(bundle.path, kohya, "-o", tmp_path / "fused", "--scale", "0.5")
    assert fused.exit_code == 0, fused.output
    assert fused.output.endswith("with kohya at 0.5\n")
    assert digests(sf.Bundle.load(tmp_path / "fused")) == digests(
        fuse_lora(bundle, kohya, tmp_path / "same", scale=0.5)
    )
    removed = run(tmp_path / "fused", "--remove", "-o", tmp_path / "fused", "--force")
    assert removed.exit_code == 0, removed.output
    assert digests(sf.Bundle.load(tmp_path / "fused")) == digests(bundle)
    for wrong in ((), (kohya, "--remove")):
        refused = run(bundle.path, *wrong, "-o", tmp_path / "other")
        assert refused.exit_code == 2
        assert "give either a LoRA to fuse or --remove" in refused.output
