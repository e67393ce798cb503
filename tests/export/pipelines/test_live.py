"""The network of a diffusers pipeline in torch, run by an engine without an export."""

import numpy as np
import pytest
import tolerances

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

import tiny_pipelines  # noqa: E402
import tiny_transformers  # noqa: E402

import stepfuse as sf  # noqa: E402
from stepfuse.bundle.model_info import GUIDANCE_INPUT  # noqa: E402
from stepfuse.errors import ExportError  # noqa: E402
from stepfuse.export.pipelines.live import read_network  # noqa: E402

STEPS = 3
TRANSFORMERS = sorted(set(tiny_transformers.PARTS) - {"PixArtAlphaPipeline"})  # whose size is 1024 pixels
WHOLE = "ignore:.*should be kept in float32"  # a warning of diffusers' own casts


def conditioning(info, rows=1, seed=0):
    """Random values of each input by name, (rows, ...)."""
    rng = np.random.default_rng(seed)
    drawn = {
        name: rng.integers(0, 9, (rows, *spec.shape))
        if spec.dtype == "int64"
        else np.ones((rows, *spec.shape), np.float32)
        if name.endswith("mask")
        else rng.standard_normal((rows, *spec.shape), np.float32)
        for name, spec in info.cond.items()
        if name != GUIDANCE_INPUT
    }
    return drawn


def facts(info):
    """What a bundle says of its network, but for names of classes, which pipelines do not keep."""
    cond = {name: (spec.dtype, spec.shape, spec.free) for name, spec in info.cond.items()}
    return info.shape, info.prediction_type, info.guidance, info.data_range, info.defaults, info.sampler_options, cond


def sample(engine, **options):
    return engine.sample(1, cond={name: rows[0] for name, rows in conditioning(engine.info).items()} or None, **options)


@pytest.mark.parametrize(
    "name",
    [*tiny_pipelines.NAMES, *tiny_pipelines.CONDITIONED, *TRANSFORMERS],
)
def test_an_engine_draws_what_the_bundle_of_the_pipeline_does(exported, name):
    """The bundle's pictures are compared with diffusers' where it is tested."""
    bundle, size = exported(name), tiny_pipelines.OWN_SIZES.get(name)
    pipe = tiny_pipelines.tiny_pipeline(name)
    how = {"steps": STEPS, "seed": 5}
    if bundle.info.cond and bundle.info.guidance != "none":
        how["guidance_scale"] = 3.0
    with sf.Engine.load(bundle, threads=1) as engine, sf.Engine.from_diffusers(pipe, size=size) as ours:
        assert facts(ours.info) == facts(engine.info)
        want, got = sample(engine, **how), sample(ours, **how)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerances.PICTURE * np.abs(want).max())


@pytest.fixture
def pipe():
    return tiny_pipelines.tiny_pipeline("StableDiffusionPipeline")


def test_latents_are_those_of_diffusers_and_the_pipeline_is_as_before(pipe):
    with sf.Engine.from_diffusers(pipe) as engine, torch.no_grad():
        noise = np.stack([sf.normal(7, engine.info.shape)])
        given = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "output_type": "latent"}
        want = pipe("a red cat", negative_prompt="dog", latents=torch.from_numpy(noise), **given).images.numpy()
        text, negative = (one.numpy()[0] for one in pipe.encode_prompt("a red cat", "cpu", 1, True, "dog"))
        got = engine.sample(1, cond=text, negative_cond=negative, noise=noise, steps=STEPS, guidance_scale=4.0)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerances.PICTURE * np.abs(want).max())


@pytest.mark.parametrize("name", ["QwenImagePipeline", "ZImagePipeline", "StableDiffusion3Pipeline", "SanaPipeline"])
def test_what_an_export_changes_of_a_network_is_changed_of_a_copy(name):
    pipe = tiny_pipelines.tiny_pipeline(name)
    kinds = [type(part) for part in pipe.transformer.modules()]
    processors = [id(getattr(part, "processor", None)) for part in pipe.transformer.modules()]
    own = [sorted(vars(part)) for part in pipe.transformer.modules()]
    module, _ = read_network(pipe, size=tiny_pipelines.OWN_SIZES.get(name))
    assert kinds == [type(part) for part in pipe.transformer.modules()]
    assert processors == [id(getattr(part, "processor", None)) for part in pipe.transformer.modules()]
    assert own == [sorted(vars(part)) for part in pipe.transformer.modules()]
    theirs = {one.data_ptr() for one in pipe.transformer.parameters()}
    assert theirs >= {one.data_ptr() for one in module.parameters()}


def test_weights_are_the_pipeline_s_and_change_with_it_in_place(pipe):
    with sf.Engine.from_diffusers(pipe) as engine:
        before = sample(engine, steps=STEPS, seed=0)
        with torch.no_grad():
            pipe.unet.conv_out.weight.mul_(0.5)
        assert np.abs(sample(engine, steps=STEPS, seed=0) - before).max() > 0.1


@pytest.mark.filterwarnings(WHOLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_unet_s_prediction_is_diffusers_own_to_the_bit_in_any_dtype(pipe, dtype):
    pipe.to(dtype)
    module, info = read_network(pipe)
    cond = {name: torch.from_numpy(rows).to(dtype) for name, rows in conditioning(info, 2).items()}
    noise = torch.randn(2, *info.shape, generator=torch.manual_seed(0)).to(dtype)
    timestep = torch.tensor([721.0, 3.0])
    with torch.no_grad():
        want = pipe.unet(noise, timestep, **cond).sample
        got = module(noise, timestep, **cond)
    assert got.dtype == dtype
    assert torch.equal(got, want)


@pytest.mark.filterwarnings(WHOLE)
def test_flux_s_prediction_in_half_precision_is_diffusers_own_to_the_bit():
    pipe = tiny_pipelines.tiny_pipeline("FluxPipeline").to(torch.bfloat16)
    module, info = read_network(pipe, size=16)
    cond = {name: torch.from_numpy(rows).bfloat16() for name, rows in conditioning(info).items()}
    cond[GUIDANCE_INPUT] = torch.tensor([3.3])
    noise, timestep = torch.randn(1, *info.shape, generator=torch.manual_seed(0)).bfloat16(), torch.tensor([721.0])
    with torch.no_grad():
        want = pipe.transformer(
            hidden_states=pipe._pack_latents(noise, 1, 16, 8, 8),
            encoder_hidden_states=cond["encoder_hidden_states"],
            pooled_projections=cond["pooled_projections"],
            timestep=timestep / 1000,
            img_ids=pipe._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32),
            txt_ids=torch.zeros(cond["encoder_hidden_states"].shape[1], 3),
            guidance=cond[GUIDANCE_INPUT],
            return_dict=False,
        )[0]
        got = module(noise, timestep, **cond)
    assert torch.equal(got, pipe._unpack_latents(want, 16, 16, 2))


@pytest.mark.filterwarnings(WHOLE)
@pytest.mark.parametrize("name", sorted({*tiny_pipelines.NAMES, *tiny_pipelines.CONDITIONED, *tiny_transformers.PARTS}))
def test_every_network_runs_in_half_precision(name):
    pipe = tiny_pipelines.tiny_pipeline(name).to(torch.bfloat16)
    with sf.Engine.from_diffusers(pipe, size=tiny_pipelines.OWN_SIZES.get(name, 16), max_rows=2) as engine:
        assert np.isfinite(sample(engine, steps=2, seed=0)).all()


def test_a_folder_is_loaded_in_the_precision_asked_for(exported):
    folder = exported("StableDiffusionPipeline").path.parent / "StableDiffusionPipeline"
    for precision, dtype in ((None, torch.float32), ("float32", torch.float32), ("bf16", torch.bfloat16)):
        module, _ = read_network(folder, precision=precision)
        assert {one.dtype for one in module.parameters()} == {dtype}
    with sf.Engine.from_diffusers(folder, size=(16, 32)) as engine:
        assert engine.info.shape == (4, 16, 8)
    with pytest.raises(ValueError, match="precision must be one of float32, bf16, f16, got 'float16'"):
        sf.Engine.from_diffusers(folder, precision="float16")


@pytest.mark.parametrize("name", sorted({*tiny_pipelines.NAMES, *tiny_pipelines.CONDITIONED, *tiny_transformers.PARTS}))
def test_positions_are_made_where_the_samples_are(name):
    """On the device 'meta', in the place of a GPU: what was made on the CPU would not meet them."""
    pipe = tiny_pipelines.tiny_pipeline(name)
    module, info = read_network(pipe, size=tiny_pipelines.OWN_SIZES.get(name, 16))
    module.to("meta")
    cond = {
        key: torch.zeros(2, *spec.shape, device="meta", dtype=torch.from_numpy(spec.value(key, None)).dtype)
        for key, spec in info.cond.items()
    }
    with torch.no_grad():
        got = module(torch.zeros(2, *info.shape, device="meta"), torch.zeros(2, device="meta"), **cond)
    assert got.shape == (2, *info.shape)
    assert got.device.type == "meta"


def test_what_cannot_be_run_is_refused_by_the_pipeline_s_name(pipe):
    with pytest.raises(ValueError, match=r"precision must be left to the pipeline, got 'bf16': pipe\.to\(dtype\)"):
        sf.Engine.from_diffusers(pipe, precision="bf16")
    with pytest.raises(ValueError, match="must be on one GPU, got cpu"):
        sf.Engine.from_diffusers(pipe, device="cuda")
    pipe.unet.train()
    with pytest.raises(ValueError, match=r"unet \(UNet2DConditionModel\) must be in evaluation mode.*pipe\.unet\.eval"):
        sf.Engine.from_diffusers(pipe)
    pipe.unet.eval()
    pipe.unet.conv_in._hf_hook = object()
    with pytest.raises(ValueError, match=r"accelerate's hooks.*leave out enable_model_cpu_offload"):
        sf.Engine.from_diffusers(pipe)
    del pipe.unet.conv_in._hf_hook
    pipe.unet.conv_in.to("meta")
    with pytest.raises(ValueError, match="must have its weights, got some on the device 'meta'"):
        sf.Engine.from_diffusers(pipe)
    wrong = diffusers.DDPMPipeline(pipe.unet, diffusers.DDPMScheduler())
    with pytest.raises(ExportError, match=r"^DDPMPipeline/model_index\.json: unet must be UNet2DModel, got UNet2DCond"):
        sf.Engine.from_diffusers(wrong)
