"""diffusers folders as bundles: pictures, precision, what the manifest says, and what is refused with nothing left."""

import errno
import gc
import importlib
import json
import shutil
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import tiny_pipelines
import tolerances

import stepfuse as sf

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

from stepfuse.export import ExportError, from_diffusers  # noqa: E402
from stepfuse.export.onnx.graph import Report  # noqa: E402
from stepfuse.export.pipelines import export_folder as diffusers_folder  # noqa: E402
from stepfuse.export.pipelines.pipeline_folder import PipelineFolder  # noqa: E402

STEPS, SEED = 5, 3


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """``pristine(name)``: the folder of a tiny pipeline, not to be changed."""
    made = {}

    def save(name):
        if name not in made:
            made[name] = tiny_pipelines.save_tiny(name, tmp_path_factory.mktemp("pristine") / name)
        return made[name]

    return save


@pytest.fixture
def copied(pristine, tmp_path):
    """``copied(name)``: a copy of it to spoil."""
    return lambda name: shutil.copytree(pristine(name), tmp_path / name)


def test_a_folder_behind_the_links_of_the_hubs_cache_is_read(pristine, tmp_path):
    folder = pristine("StableDiffusionPipeline")
    snapshot = tmp_path / "models--me--tiny" / "snapshots" / "0123abc"
    (tmp_path / "models--me--tiny" / "blobs").mkdir(parents=True)
    for number, file in enumerate(one for one in sorted(folder.rglob("*")) if one.is_file()):
        blob, link = snapshot.parents[1] / "blobs" / str(number), snapshot / file.relative_to(folder)
        shutil.copyfile(file, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (len(link.relative_to(snapshot.parents[1]).parts) - 1)) / "blobs" / blob.name)
    read, plain = PipelineFolder(snapshot), PipelineFolder(folder)
    assert read.index == plain.index
    assert dict(read.config("vae", "AutoencoderKL")) == dict(plain.config("vae", "AutoencoderKL"))
    wanted = plain.load("vae", ("AutoencoderKL",)).state_dict()
    found = read.load("vae", ("AutoencoderKL",)).state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.fixture
def refused(tmp_path):
    """``refused(folder, match, **options)``: an export that must fail and leave nothing."""

    def export(folder, match, **options):
        out = tmp_path / "out"
        with pytest.raises(ExportError, match=match) as raised:
            from_diffusers(folder, out / "bundle", **options)
        assert not out.exists() or not list(out.iterdir())
        return str(raised.value)

    return export


@pytest.fixture
def untraced(monkeypatch):
    """Exporting writes graphs of a few bytes from here on, and compares nothing."""

    def export_onnx(module, path, inputs, outputs, *, opset, precision, **options):
        path.write_bytes(b"\x12\x05graph")  # a model with a producer's name
        return Report({path.name: path}, opset, precision, {}, 5)

    monkeypatch.setattr(diffusers_folder, "export_onnx", export_onnx)
    monkeypatch.setattr(diffusers_folder, "validate", lambda path, module, inputs, outputs, **_: {})


def noise(n, shape, **options):
    return np.stack([sf.normal(SEED + i, shape, **options) for i in range(n)])


PIXELS = {"DDPMPipeline": "ddpm", "DDIMPipeline": "ddim"}


@pytest.mark.parametrize("name", PIXELS)
def test_pixels_are_those_of_diffusers(exported, name, monkeypatch):
    """Latent pipelines are in tests/engine/pipeline/test_text_to_image_diffusers.py."""
    bundle = exported(name)
    pipe = tiny_pipelines.tiny_pipeline(name)
    shape = bundle.info.shape
    steps = iter(range(STEPS))

    def start(size, **_):
        return torch.from_numpy(noise(size[0], shape))

    def added(size, **_):
        return torch.from_numpy(noise(size[0], shape, step=next(steps), stream=1))

    monkeypatch.setattr(sys.modules[type(pipe).__module__], "randn_tensor", start)
    monkeypatch.setattr(sys.modules[type(pipe.scheduler).__module__], "randn_tensor", added)
    with torch.no_grad():
        want = pipe(batch_size=2, num_inference_steps=STEPS, output_type="np").images
    with sf.Engine.load(bundle, threads=1) as engine:
        assert engine.table(steps=STEPS).sampler == PIXELS[name]
        samples = engine.sample(2, seed=[SEED, SEED + 1], steps=STEPS)
    got = np.clip(samples / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1)
    assert np.median(np.minimum(want, 1 - want)) > 0.001  # most is not clipped
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerances.PICTURE)


def test_another_size_than_the_one_exported(exported):
    bundle = exported("DDIMPipeline")
    x = noise(1, (3, 12, 20))
    with torch.no_grad():
        want = tiny_pipelines.tiny_pipeline("DDIMPipeline").unet(torch.from_numpy(x), 0).sample.numpy()
    with sf.Engine.load(bundle, shape=(3, 12, 20), threads=1) as engine:
        sample = engine.sample(1, noise=x, sampler="ddim", timesteps=[0], clip=None)
    alpha = bundle.info.schedule.alphas_cumprod[0]
    np.testing.assert_allclose(sample, (x - (1 - alpha) ** 0.5 * want) / alpha**0.5, rtol=0, atol=tolerances.PICTURE)


def test_what_the_manifest_says(exported):
    bundle = exported("DiTPipeline")
    assert bundle.pipeline.source == "DiTPipeline"
    assert bundle.pipeline.fixed_size
    assert bundle.info.defaults["sampler"] == "ddim"
    assert not bundle.info.range_known
    assert set(bundle.export["errors"]) == {"denoiser.onnx", "vae_decoder.onnx", "vae_encoder.onnx"}
    assert all(0 < error < 1e-4 for part in bundle.export["errors"].values() for error in part.values())
    assert bundle.export["opset"] == 18
    assert bundle.export["diffusers"] == diffusers.__version__
    assert bundle.licence == "not stated: that of the weights it was exported from"
    assert "DiTPipeline" in bundle.provenance


@pytest.mark.slow
def test_float16_halves_the_weights(pristine, exported, tmp_path):
    import onnx

    seen = []
    bundle = from_diffusers(
        pristine("DiTPipeline"),
        tmp_path / "half",
        precision="float16",
        sampler="dpmpp_2m",
        size=16,
        name="half",
        progress=lambda *news: seen.append(news),
    )
    assert bundle.name == "half"
    assert bundle.info.defaults["sampler"] == "dpmpp_2m"
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})
    assert seen[-1] == ("writing", 9, 10)
    for part in ("denoiser", "vae_decoder", "vae_encoder"):
        graph = onnx.load(bundle.path / f"{part}.onnx").graph
        kinds = [one.data_type for one in graph.initializer if len(one.dims) > 1]
        assert kinds.count(onnx.TensorProto.FLOAT16) > 0.9 * len(kinds)
        assert {one.type.tensor_type.elem_type for one in graph.output} == {onnx.TensorProto.FLOAT}
    run = {"cond": [1, 2], "noise": noise(2, (4, 8, 8)), "steps": STEPS, "sampler": "ddim"}
    with sf.Engine.load(bundle, threads=1) as half, sf.Engine.load(exported("DiTPipeline"), threads=1) as whole:
        found, expected = half.sample(2, **run), whole.sample(2, **run)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert 0 < error < tolerances.HALF_LATENTS


def test_components_are_loaded_one_at_a_time(pristine, untraced, tmp_path, monkeypatch):
    alive, load = [], PipelineFolder.load

    def watched(folder, name, allowed):
        gc.collect()
        assert not [known for known, module in alive if module() is not None]
        module = load(folder, name, allowed)
        alive.append((name, weakref.ref(module)))
        return module

    monkeypatch.setattr(PipelineFolder, "load", watched)
    from_diffusers(pristine("StableDiffusionPipeline"), tmp_path / "bundle")
    assert [name for name, _ in alive] == ["text_encoder", "unet", "vae"]


def test_a_folder_says_its_licence_and_what_is_left_out(copied, untraced, tmp_path, caplog):
    folder = copied("DDIMPipeline")
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: 'open-rail'\ntags:\n- x\n---\nlicense: no\n")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "image_encoder": [None, None]}
    (folder / "model_index.json").write_text(json.dumps({**index, "_name_or_path": "someone/something"}))
    bundle = from_diffusers(folder, tmp_path / "bundle")
    assert bundle.licence == "open-rail"
    assert bundle.provenance.endswith("someone/something")
    assert bundle.export["left_out"] == ["safety_checker"]
    assert "not exported: safety_checker" in caplog.text


def test_weights_of_another_variant(pristine, copied):
    folder = copied("DDIMPipeline")
    unet = PipelineFolder(folder).load("unet", ["UNet2DModel"])
    shutil.rmtree(folder / "unet")
    unet.half().save_pretrained(folder / "unet", variant="fp16", max_shard_size="60KB")
    assert len(list((folder / "unet").glob("*fp16*.safetensors"))) > 1
    assert PipelineFolder(folder).weights("unet") == "fp16"
    loaded = PipelineFolder(folder).load("unet", ["UNet2DModel"])
    assert loaded.dtype == torch.float32
    kept = PipelineFolder(pristine("DDIMPipeline")).load("unet", ["UNet2DModel"]).state_dict()
    torch.testing.assert_close(loaded.state_dict(), kept, rtol=1e-3, atol=1e-3)
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": {"a": "nowhere"}}')
    assert PipelineFolder(folder).weights("unet") == "fp16"  # that list is of the other variant
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").unlink()
    shard = sorted((folder / "unet").glob("*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(ExportError, match=rf"{shard.name} is missing"):
        PipelineFolder(folder).weights("unet")


OLD_INDEX = {"diffusers": "{}.safetensors.fp16.index.json", "transformers": "{}.safetensors.index.fp16.json"}


@pytest.mark.parametrize("name", ["unet", "text_encoder"])
@pytest.mark.parametrize("dots", ["", "v1.5"], ids=["", "dots in the path"])
def test_shards_of_a_variant_under_their_old_names(pristine, tmp_path, name, dots):
    library, kind, stem = {
        "unet": ("diffusers", "UNet2DConditionModel", "diffusion_pytorch_model"),
        "text_encoder": ("transformers", "CLIPTextModel", "model"),
    }[name]
    folder = tmp_path / dots / "pipeline"
    shutil.copytree(pristine("StableDiffusionPipeline"), folder)
    whole = PipelineFolder(folder).load(name, [kind])
    kept = {key: value.half().float() for key, value in whole.state_dict().items()}
    shutil.rmtree(folder / name)
    whole.half().save_pretrained(folder / name, variant="fp16", max_shard_size="4KB")
    # Shards and their index are renamed to what earlier versions of both libraries wrote.
    for shard in (folder / name).glob(f"{stem}.fp16-*.safetensors"):
        number = shard.name.removeprefix(f"{stem}.fp16").removesuffix(".safetensors")
        shard.rename(folder / name / f"{stem}{number}.fp16.safetensors")
    index = folder / name / f"{stem}.safetensors.index.fp16.json"
    text = index.read_text().replace(f"{stem}.fp16-", f"{stem}-").replace(".safetensors", ".fp16.safetensors")
    index.unlink()
    (folder / name / OLD_INDEX[library].format(stem)).write_text(text)
    assert len(list((folder / name).glob("*-of-*.fp16.safetensors"))) > 1
    if not dots:  # diffusers looks for the old name in the wrong place then
        own = getattr(importlib.import_module(library), kind)
        torch.testing.assert_close(own.from_pretrained(folder / name, variant="fp16").float().state_dict(), kept)
    assert PipelineFolder(folder).weights(name) == "fp16"
    torch.testing.assert_close(PipelineFolder(folder).load(name, [kind]).state_dict(), kept)
    next((folder / name).glob("*00001*.safetensors")).unlink()
    with pytest.raises(ExportError, match=r"00001-of-\d+\.fp16\.safetensors is missing: .* lists it"):
        PipelineFolder(folder).weights(name)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("vae/config.json", {"block_out_channels": 3}),
        ("vae/config.json", {"scaling_factor": "x"}),
        ("vae/config.json", {"latents_mean": 1, "latents_std": [0]}),
        ("unet/config.json", {"sample_size": "x"}),
        ("unet/config.json", {"sample_size": {"a": 1}}),
        ("unet/config.json", {"block_out_channels": None}),
        ("text_encoder/config.json", {"vocab_size": "x"}),
        ("text_encoder/config.json", {"max_position_embeddings": "x"}),
        ("text_encoder/config.json", {"hidden_size": -1}),
        ("tokenizer/tokenizer.json", []),
        ("tokenizer/tokenizer.json", {"model": 3}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": "x"}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 1e400}),
        ("scheduler/scheduler_config.json", {"trained_betas": {}}),
        ("model_index.json", {"unet": {"a": 1}}),
        ("model_index.json", {"scheduler": [1, {}]}),
    ],
)
def test_damaged_configurations_are_errors_of_the_folder(copied, untraced, tmp_path, file, change):
    folder = copied("StableDiffusionPipeline")
    path = folder / file
    there = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**there, **change} if isinstance(change, dict) else change))
    with pytest.raises(ExportError):
        from_diffusers(folder, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_an_error_too_large_leaves_what_was_there(pristine, exported, tmp_path, monkeypatch):
    graph = exported("DDIMPipeline").denoiser.read_bytes()
    monkeypatch.setattr(diffusers_folder, "export_onnx", lambda module, path, *_, **__: path.write_bytes(graph))
    out = shutil.copytree(exported("DDIMPipeline").path, tmp_path / "bundle")
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(ExportError, match=r"denoiser\.onnx: prediction .*: error must be at most 1e-12 .* got"):
        from_diffusers(pristine("DDIMPipeline"), out, overwrite=True, tolerance=1e-12)
    assert (out / "manifest.json").read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["bundle"]


def test_files_are_written_once_and_hashed_once(pristine, untraced, written, tmp_path):
    bundle = from_diffusers(pristine("StableDiffusionPipeline"), tmp_path / "bundle")
    assert sorted(written.hashed) == sorted(bundle.files)
    assert written.peak_bytes == sum(file["size"] for file in bundle.files.values())
    assert sf.Bundle.load(bundle.path).files == bundle.files


def test_a_disk_that_is_full_when_the_bundle_is_put_together(pristine, untraced, refused, monkeypatch):
    def write_text(self, text, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_text)
    refused(
        pristine("DDIMPipeline"),
        r"cannot be written: .*No space left on device.*: it takes 7 bytes and more, [0-9.]+ [MGT]B are free",
    )


def test_a_bundle_that_is_there_is_kept(pristine, tmp_path):
    (tmp_path / "bundle").mkdir()
    with pytest.raises(ExportError, match="exists already: pass overwrite=True"):
        from_diffusers(pristine("DDIMPipeline"), tmp_path / "bundle")
    with pytest.raises(ExportError, match=r"exists already: only a folder with a manifest\.json is replaced"):
        from_diffusers(pristine("DDIMPipeline"), tmp_path / "bundle", overwrite=True)


ARGUMENTS = [
    ({"precision": "bfloat16"}, "precision must be one of float32, float16, got 'bfloat16'"),
    ({"opset": 9}, "opset must be between 18 and 23, got 9"),
    ({"size": 1.5}, r"size must be a whole number of pixels or \(width, height\), got 1.5"),
    ({"size": (16, 16, 16)}, "size must be a whole number"),
    ({"size": True}, "size must be a whole number"),
    ({"sampler_options": {"spacing": "even"}}, "spacing must be 'leading', 'trailing' or 'linspace', got 'even'"),
]


@pytest.mark.parametrize(("argument", "match"), ARGUMENTS)
def test_arguments_out_of_bounds(pristine, tmp_path, argument, match):
    with pytest.raises(ValueError, match=match):
        from_diffusers(pristine("DDIMPipeline"), tmp_path / "bundle", **argument)


def test_what_is_no_pipelines_folder(tmp_path, refused):
    refused(tmp_path / "nowhere", "must be the folder of a diffusers pipeline: there is none")
    folder = tmp_path / "folder"
    folder.mkdir()
    refused(folder, r"must hold a model_index\.json")
    (folder / "model_index.json").write_text("[]")
    refused(folder, r"model_index\.json must hold an object, got list")
    (folder / "model_index.json").write_text("{")
    refused(folder, r"model_index\.json is not readable JSON")
    (folder / "model_index.json").write_text('{"_class_name": "MochiPipeline"}')
    refused(folder, "pipeline must be one of DDPMPipeline, .*FluxPipeline.*, got MochiPipeline")


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


SPOILED = {
    "component": (
        "DDIMPipeline",
        lambda folder: edit(folder / "model_index.json", unet=[None, None]),
        "DDIMPipeline must have a unet, got none",
    ),
    "component class": (
        "DDIMPipeline",
        lambda folder: edit(folder / "model_index.json", unet=["diffusers", "UNet3DConditionModel"]),
        "unet must be UNet2DModel, got UNet3DConditionModel",
    ),
    "component folder": (
        "StableDiffusionPipeline",
        lambda folder: shutil.rmtree(folder / "vae"),
        "vae is missing: model_index.json says that vae is there",
    ),
    "component config": (
        "DiTPipeline",
        lambda folder: (folder / "transformer" / "config.json").unlink(),
        "transformer/config.json is missing",
    ),
    "scheduler": (
        "DDIMPipeline",
        lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(),
        "scheduler_config.json is missing",
    ),
    "class-conditional UNet": (
        "DDPMPipeline",
        lambda folder: edit(folder / "unet" / "config.json", num_class_embeds=10),
        r"unet \(UNet2DModel\): num_class_embeds must be None, got 10",
    ),
    "learned variance": (
        "DDPMPipeline",
        lambda folder: edit(folder / "unet" / "config.json", out_channels=6),
        "out_channels must be in_channels, 3, got 6",
    ),
    "inpainting": (
        "StableDiffusionPipeline",
        lambda folder: edit(folder / "unet" / "config.json", in_channels=9),
        "in_channels must be 4, the VAE's latent_channels, got 9",
    ),
    "guidance embedded": (
        "StableDiffusionPipeline",
        lambda folder: edit(folder / "unet" / "config.json", time_cond_proj_dim=2),
        "time_cond_proj_dim must be None, or at least 4, got 2",
    ),
    "width": (
        "StableDiffusionXLPipeline",
        lambda folder: edit(folder / "unet" / "config.json", cross_attention_dim=99),
        "cross_attention_dim must be 40, the text encoders' width, got 99",
    ),
    "sampler settings": (
        "DDPMPipeline",
        lambda folder: edit(folder / "scheduler" / "scheduler_config.json", variance_type="learned"),
        "variance_type must be .* got 'learned'",
    ),
    "vocabulary": (
        "StableDiffusionPipeline",
        lambda folder: (folder / "tokenizer" / "tokenizer.json").unlink(),
        r"tokenizer must hold tokenizer\.json, or vocab\.json and merges\.txt, .* got tokenizer_config\.json",
    ),
    "tokenizer that pads before": (
        "StableDiffusionPipeline",
        lambda folder: edit(folder / "tokenizer" / "tokenizer_config.json", padding_side="left"),
        r"tokenizer: tokenizer\.json must give the ids of CLIPTokenizer",
    ),
    "tokenizer without a length": (
        "StableDiffusionPipeline",
        lambda folder: edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=10**30),
        "model_max_length must be the length of the context",
    ),
    "context": (
        "StableDiffusionPipeline",
        lambda folder: edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=77),
        "max_position_embeddings must be at least 77, got 12",
    ),
    "no weights": (
        "DiTPipeline",
        lambda folder: (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink(),
        "vae must hold weights as safetensors, got config.json",
    ),
    "truncated weights": (
        "DDIMPipeline",
        lambda folder: (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x08" + bytes(30)),
        "UNet2DModel cannot be loaded",
    ),
    "truncated text encoder": (
        "StableDiffusionPipeline",
        lambda folder: (folder / "text_encoder" / "model.safetensors").write_bytes(b"\x08" + bytes(30)),
        "CLIPTextModel cannot be loaded",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_what_is_missing_or_not_covered_is_named(copied, refused, case):
    name, spoil, match = SPOILED[case]
    folder = copied(name)
    spoil(folder)
    refused(folder, match)


def test_weights_that_do_not_fit_the_network(copied, refused):
    from safetensors.torch import load_file, save_file

    folder = copied("DDIMPipeline")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["conv_in.bias"], weights["conv_out.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    refused(folder, r"weights of UNet2DModel must be complete, 2 miss: conv_in\.bias, conv_out\.weight")
    save_file({**weights, "conv_in.bias": torch.zeros(3)}, file, metadata={"format": "pt"})
    refused(folder, "UNet2DModel")


def test_pickles_are_refused_with_the_command_that_converts_them(copied, refused, tmp_path):
    import subprocess

    folder = copied("DDIMPipeline")
    unet = PipelineFolder(folder).load("unet", ["UNet2DModel"])
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    unet.save_pretrained(folder / "unet", safe_serialization=False)
    said = refused(folder, "unet must hold weights as safetensors, got diffusion_pytorch_model.bin: files that can run")
    command = said.partition("convert them: ")[2].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True, capture_output=True, cwd=tmp_path)
    assert PipelineFolder(tmp_path / "CONVERTED").weights("unet") is None
