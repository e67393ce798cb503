"""Our schedulers as diffusers' own: configuration, files, copies, and inside its pipelines."""

import copy
import inspect
import json
import pickle
import re
import sys

import pytest
import tiny_pipelines
import tolerances
import torch

from stepfuse.extras import pip_install
from stepfuse.integrations import diffusers as ours

diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

from stepfuse.integrations.diffusers import schedulers as diffusers_schedulers  # noqa: E402 (imports diffusers)

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array_:DeprecationWarning",  # diffusers, or numpy for it
    "ignore:.*scale_model_input:UserWarning",  # a step without a network
)

CONFIGS = {
    "DDIMScheduler": {"beta_schedule": "scaled_linear", "steps_offset": 1, "prediction_type": "v_prediction"},
    "DDPMScheduler": {"variance_type": "fixed_large", "trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3},
    "LCMScheduler": {"original_inference_steps": 40},
    "DDIMInverseScheduler": {"prediction_type": "v_prediction", "clip_sample": False},
    "DPMSolverMultistepScheduler": {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"},
    "CMStochasticIterativeScheduler": {"sigma_max": 40.0},
    "DEISMultistepScheduler": {"solver_order": 3},
    "DPMSolverSinglestepScheduler": {"solver_order": 3, "use_karras_sigmas": True},
    "EDMDPMSolverMultistepScheduler": {"sigma_max": 60.0},
    "EDMEulerScheduler": {"sigma_data": 0.6},
    "EulerAncestralDiscreteScheduler": {"timestep_spacing": "trailing"},
    "EulerDiscreteScheduler": {"beta_schedule": "scaled_linear", "use_exponential_sigmas": True},
    "FlowMatchEulerDiscreteScheduler": {"shift": 3.0},
    "FlowMatchHeunDiscreteScheduler": {"shift": 2.0},
    "FlowMatchLCMScheduler": {"shift": 2.0},
    "HeunDiscreteScheduler": {"prediction_type": "v_prediction"},
    "IPNDMScheduler": {"num_train_timesteps": 500},
    "KDPM2AncestralDiscreteScheduler": {"steps_offset": 1},
    "KDPM2DiscreteScheduler": {"use_karras_sigmas": True},
    "LMSDiscreteScheduler": {"use_karras_sigmas": True},
    "PNDMScheduler": {"skip_prk_steps": True, "set_alpha_to_one": True},
    "SASolverScheduler": {"predictor_order": 3},
    "TCDScheduler": {"original_inference_steps": 40},
    "UniPCMultistepScheduler": {"solver_order": 3, "disable_corrector": [0]},
}


@pytest.fixture(params=CONFIGS)
def name(request):
    return request.param


def test_signatures_are_theirs(name):
    mine, theirs = getattr(ours, name), getattr(diffusers, name)
    assert issubclass(mine, theirs)
    assert inspect.signature(mine) == inspect.signature(theirs)
    assert list(inspect.signature(mine.step).parameters) == list(inspect.signature(theirs.step).parameters)
    for parameter in inspect.signature(theirs.step).parameters.values():
        assert inspect.signature(mine.step).parameters[parameter.name].default == parameter.default


def test_either_library_reads_what_the_other_saved(name, tmp_path):
    mine, theirs = getattr(ours, name), getattr(diffusers, name)
    mine(**CONFIGS[name]).save_pretrained(tmp_path / "mine")
    theirs(**CONFIGS[name]).save_pretrained(tmp_path / "theirs")
    files = [(tmp_path / folder / "scheduler_config.json").read_text() for folder in ("mine", "theirs")]
    assert files[0] == files[1]
    for cls, folder in ((mine, "theirs"), (theirs, "mine"), (mine, "mine")):
        read = cls.from_pretrained(tmp_path / folder)
        assert type(read) is cls
        assert {key: read.config[key] for key in CONFIGS[name]} == CONFIGS[name]


def test_from_the_configuration_of_another_class():
    sdxl = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    mine = ours.DPMSolverMultistepScheduler.from_config(sdxl.config, use_karras_sigmas=True)
    assert (mine.config.beta_end, mine.config.use_karras_sigmas) == (0.012, True)
    back = diffusers.EulerDiscreteScheduler.from_config(mine.config)
    assert back.config.beta_schedule == "scaled_linear"
    assert mine.compatibles


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))], ids=["copy", "pickle"])
def test_copies_step_the_same(name, duplicate):
    try:
        duplicate(getattr(diffusers, name)(**CONFIGS[name]))
    except AttributeError:  # SASolverScheduler keeps a lambda
        pytest.skip(f"diffusers' own {name} cannot be pickled")
    scheduler = getattr(ours, name)(**CONFIGS[name])
    scheduler.set_timesteps(3)
    x = torch.linspace(-1, 1, 12).reshape(1, 3, 2, 2)
    takes_noise = "generator" in inspect.signature(scheduler.step).parameters

    def step(one, share, at, x, seed):
        noisy = {"generator": torch.manual_seed(seed)} if takes_noise else {}
        return one.step(share * x, one.timesteps[at], x, **noisy).prev_sample

    x = step(scheduler, 0.3, 0, x, 0)
    twin = duplicate(scheduler)
    assert type(twin) is type(scheduler)
    results = [step(one, 0.2, 1, x, 1) for one in (scheduler, twin)]
    assert torch.equal(*results)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return diffusers.UNet2DModel(**sizes, **blocks, attention_head_dim=8).eval()


def images(pipe, scheduler, **options):
    pipe.scheduler = scheduler
    pipe.set_progress_bar_config(disable=True)
    return pipe(batch_size=2, generator=torch.manual_seed(0), output_type="np", **options).images


@pytest.mark.parametrize(
    ("pipeline", "name", "config", "options"),
    [
        ("DDPMPipeline", "DDPMScheduler", {}, {"num_inference_steps": 20}),
        ("DDIMPipeline", "DDIMScheduler", {}, {"num_inference_steps": 10}),
        ("DDIMPipeline", "DDIMScheduler", {"timestep_spacing": "trailing"}, {"num_inference_steps": 10, "eta": 0.5}),
        ("DDPMPipeline", "LCMScheduler", {"clip_sample": True}, {"num_inference_steps": 6}),
        ("DDPMPipeline", "DPMSolverMultistepScheduler", {}, {"num_inference_steps": 10}),
    ],
)
def test_images_of_a_pipeline(pipeline, name, config, options, unet, monkeypatch):
    monkeypatch.setattr(diffusers_schedulers, "warn_once", lambda *reason: pytest.fail(str(reason)))
    pipe = getattr(diffusers, pipeline)(unet=unet, scheduler=diffusers.DDPMScheduler())
    theirs = images(pipe, getattr(diffusers, name)(**config), **options)
    mine = images(pipe, getattr(ours, name).from_config(pipe.scheduler.config), **options)
    assert theirs.std() > 0.05
    assert abs(mine - theirs).max() <= tolerances.SCHEDULER_IMAGES


@pytest.fixture(scope="module")
def stable_diffusion():
    return tiny_pipelines.tiny_pipeline("StableDiffusionPipeline")


@pytest.mark.parametrize("name", ["DDIMScheduler", "LCMScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("guidance_scale", [1.0, 6.0])
def test_images_of_stable_diffusion(name, guidance_scale, stable_diffusion, monkeypatch):
    monkeypatch.setattr(diffusers_schedulers, "warn_once", lambda *reason: pytest.fail(str(reason)))
    pipe, results = stable_diffusion, []
    for library in (diffusers, ours):
        pipe.scheduler = getattr(library, name).from_config(pipe.scheduler.config)
        options = {"guidance_scale": guidance_scale, "num_inference_steps": 5, "eta": 0.3, "output_type": "np"}
        results.append(pipe(tiny_pipelines.PROMPTS, generator=torch.manual_seed(0), **options).images)
    assert results[0].std() > 0.05
    assert abs(results[1] - results[0]).max() <= tolerances.SCHEDULER_IMAGES


def test_saved_pipeline_loads_with_diffusers_alone(unet, tmp_path):
    diffusers.DDPMPipeline(unet=unet, scheduler=ours.DDPMScheduler()).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "DDPMScheduler"]
    assert type(diffusers.DDPMPipeline.from_pretrained(tmp_path).scheduler) is diffusers.DDPMScheduler
    given = diffusers.DDPMPipeline.from_pretrained(
        tmp_path, scheduler=ours.DDPMScheduler.from_pretrained(tmp_path / "scheduler")
    )
    assert type(given.scheduler) is ours.DDPMScheduler


def test_subclass_of_a_user_keeps_its_own_module(unet):
    class Mine(ours.DDPMScheduler):
        pass

    assert Mine().__module__ == __name__


def test_names_of_the_public_module():
    assert set(ours.__all__) >= {*CONFIGS, "compile"}
    with pytest.raises(AttributeError, match="has no attribute 'VQDiffusionScheduler'"):
        _ = ours.VQDiffusionScheduler


@pytest.mark.parametrize("missing", ["torch", "diffusers"])
def test_what_is_missing_is_named(missing, monkeypatch):
    monkeypatch.delitem(sys.modules, "stepfuse.integrations.diffusers.schedulers")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match=re.escape(f"DDIMScheduler needs {missing}: {pip_install('export')}")):
        _ = ours.DDIMScheduler
