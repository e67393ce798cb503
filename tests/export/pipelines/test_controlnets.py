"""ControlNets of other folders in an export: those that fit are part of the denoiser, others are refused by name."""

import json
import shutil

import pytest
import tiny_pipelines
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

from stepfuse.cli.app import app  # noqa: E402
from stepfuse.export import ExportError, from_diffusers  # noqa: E402
from stepfuse.export.pipelines import stable_diffusion, stable_diffusion_3, stable_diffusion_xl  # noqa: E402
from stepfuse.export.pipelines.pipeline_folder import PipelineFolder  # noqa: E402

CONTROLLED_3 = "StableDiffusion3ControlNetPipeline"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """``saved(name)``: a pipeline's or a ControlNet's folder, not to be changed."""
    base, made = tmp_path_factory.mktemp("saved"), {}
    makers = {"edges": lambda: tiny_pipelines.controlnet(16), "xl": tiny_pipelines.xl_controlnet}
    makers["of 3"] = tiny_pipelines.sd3_controlnet

    def save(name):
        if name not in made:
            made[name] = base / name
            if name in makers:
                makers[name]().save_pretrained(made[name])
            else:
                tiny_pipelines.save_tiny(name, made[name])
        return made[name]

    return save


@pytest.fixture
def refused(saved, tmp_path):
    """``refused(match, nets, name)``: an export that must fail and leave nothing."""

    def export(match, nets, name="StableDiffusionPipeline", kind=ExportError, **options):
        with pytest.raises(kind, match=match):
            from_diffusers(saved(name), tmp_path / "bundle", controlnets=nets, **options)
        assert not (tmp_path / "bundle").exists()

    return export


def changed(folder, target, **config):
    """A copy of a ControlNet's folder with another configuration."""
    shutil.copytree(folder, target)
    file = target / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return target


def test_a_pipeline_that_was_saved_with_one_has_it(saved):
    plan = stable_diffusion.plan(PipelineFolder(saved("StableDiffusionControlNetPipeline")), None, ["controlnet"])
    assert plan.pipeline.controls == ("controlnet",)
    assert plan.cond["control_of_controlnet"].shape == (3, 16, 16)
    assert plan.defaults == {"steps": 50, "guidance_scale": 7.5}


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"cross_attention_dim": 24}, r"edges \(ControlNetModel\): cross_attention_dim must be 16, as its UNet has it"),
        ({"block_out_channels": [8, 8]}, r"block_out_channels must be \(8, 16\), as its UNet has it, got \[8, 8\]"),
        ({"global_pool_conditions": True}, "global_pool_conditions must be False: it needs guess mode"),
        ({"conditioning_channels": 1}, "conditioning_channels must be 3, got 1"),
        ({"conditioning_embedding_out_channels": [4, 4, 8]}, "must be 2 numbers, for pictures 2 times as large"),
        ({"_class_name": "ControlNetUnionModel"}, "_class_name must be ControlNetModel, got 'ControlNetUnionModel'"),
    ],
)
def test_one_that_does_not_fit_is_refused(saved, refused, tmp_path, config, match):
    refused(match, {"edges": changed(saved("edges"), tmp_path / "edges", **config)})


def test_a_pipeline_of_3_has_its_own(saved):
    plan = stable_diffusion_3.plan(PipelineFolder(saved(CONTROLLED_3)), None, ["controlnet"])
    assert (plan.pipeline.controls, plan.pipeline.encoded_controls) == (("controlnet",), True)
    assert plan.cond["encoded_control_of_controlnet"].shape == (16, 8, 8)
    plain = stable_diffusion_3.plan(PipelineFolder(saved("StableDiffusion3Pipeline")), None)
    assert not plain.pipeline.encoded_controls
    assert "encoded_controls" not in plain.pipeline.config


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (
            {"attention_head_dim": 4},
            r"edges \(SD3ControlNetModel\): attention_head_dim must be 8, as its transformer has",
        ),
        ({"pooled_projection_dim": 24}, "pooled_projection_dim must be 40, as its transformer has it, got 24"),
        ({"joint_attention_dim": 32}, "joint_attention_dim must be 48, as its transformer has it, or None, got 32"),
        (
            {"extra_conditioning_channels": 1},
            "extra_conditioning_channels must be 0: no ControlNet that repaints, got 1",
        ),
        ({"pos_embed_type": None}, "pos_embed_type must be 'sincos', got None"),
        ({"num_layers": 1}, "num_layers must be 2, as the first ControlNet has it, got 1"),
        ({"force_zeros_for_pooled_projection": False}, "must be True, as the first ControlNet has it, got False"),
        ({"_class_name": "ControlNetModel"}, "_class_name must be SD3ControlNetModel, got 'ControlNetModel'"),
    ],
)
def test_one_that_does_not_fit_a_transformer_is_refused(saved, refused, tmp_path, config, match):
    refused(match, {"edges": changed(saved("of 3"), tmp_path / "edges", **config)}, CONTROLLED_3)


def test_one_of_another_model_is_refused(saved, refused):
    refused(
        "cross_attention_dim must be 40, as its UNet has it, got 16", {"a": saved("edges")}, "StableDiffusionXLPipeline"
    )
    refused("cross_attention_dim must be 16, as its UNet has it, got 40", {"a": saved("xl")})
    refused("controlnets need Stable Diffusion .* XL or 3, got DiTPipeline", {"a": saved("edges")}, "DiTPipeline")


def test_names(saved, refused, tmp_path):
    refused("has a unet of its own: give .* another name", {"unet": saved("edges")})
    refused("name must be 1 to 64 letters, digits, _ and -, got 'a b'", {"a b": saved("edges")}, kind=ValueError)
    refused(r"config\.json is missing", {"a": tmp_path})


def test_weights_that_could_run_code_are_refused_with_the_command_that_converts_them(saved, refused, tmp_path):
    net = PipelineFolder(saved("StableDiffusionControlNetPipeline")).load("controlnet", ["ControlNetModel"])
    net.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    refused(
        r"must hold weights as safetensors, got .*\.bin.* convert them: .* import ControlNetModel as M;"
        r" M\.from_pretrained\('.*pickled', use_safetensors=False\)\.save_pretrained",
        {"a": tmp_path / "pickled"},
    )


def test_shards_of_a_variant(saved, tmp_path):
    """As hubs hold ControlNets: half precision, in several files."""
    folder = PipelineFolder(saved("StableDiffusionPipeline"))
    net = tiny_pipelines.controlnet(16)
    kept = {name: value.half().float() for name, value in net.state_dict().items()}
    net.half().save_pretrained(tmp_path / "net", variant="fp16", max_shard_size="8KB")
    assert len(list((tmp_path / "net").glob("*.safetensors"))) > 1
    folder.add("net", tmp_path / "net", "ControlNetModel")
    torch.testing.assert_close(folder.load("net", ["ControlNetModel"]).state_dict(), kept)


def test_layers_that_are_left_out_are_there(saved, refused):
    refused("num_hidden_layers must be at least 3, as many as clip_skip leaves out, got 2", {}, clip_skip=3)
    refused("num_hidden_layers must be at least 3", {}, "StableDiffusionXLPipeline", clip_skip=2)
    refused("clip_skip must be at least 0, got -1", {}, kind=ValueError, clip_skip=-1)
    refused("clip_skip need Stable Diffusion", {}, "DiTPipeline", clip_skip=1)


def test_the_refiner_has_aesthetic_scores(saved):
    plan = stable_diffusion_xl.plan(PipelineFolder(saved("StableDiffusionXLImg2ImgPipeline")), None)
    assert plan.pipeline.aesthetic_scores == (6.0, 2.5)
    assert plan.cond["time_ids"].shape == (5,)
    assert [one.input for one in plan.pipeline.prompts] == ["input_ids_2"]


@pytest.mark.parametrize("text", ["edges", "=folder", "edges="])
def test_what_the_command_line_takes(saved, tmp_path, text):
    arguments = ["export", saved("StableDiffusionPipeline"), "-o", tmp_path / "bundle", "--controlnet", text]
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == 2
    assert "--controlnet must be NAME=FOLDER" in done.stderr.replace("\n", " ")


@pytest.mark.slow
def test_the_command_line_exports_one(saved, tmp_path):
    arguments = ["export", saved("StableDiffusionPipeline"), "-o", tmp_path / "bundle", "--clip-skip", 1]
    arguments += ["--controlnet", f"edges={saved('edges')}"]
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == 0, done.output
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["pipeline"]["controls"] == ["edges"]
