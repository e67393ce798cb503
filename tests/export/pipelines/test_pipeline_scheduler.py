"""Which schedule and sampler a pipeline's folder comes to, against the scheduler that diffusers makes of it."""

import json

import numpy as np
import peers
import pytest
import tiny_pipelines

pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

from stepfuse.export import ExportError  # noqa: E402
from stepfuse.export.pipelines.pipeline_folder import PipelineFolder  # noqa: E402
from stepfuse.export.pipelines.scheduler import CLASSES, read_settings  # noqa: E402
from stepfuse.integrations.scheduler_config import read_scheduler, with_algorithm  # noqa: E402


@pytest.fixture
def folder_of(tmp_path):
    """``folder_of(class name, scheduler)``: a folder that holds these two facts alone."""

    def make(name, scheduler):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
        if isinstance(scheduler, dict):
            (tmp_path / "scheduler").mkdir(exist_ok=True)
            (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
        else:
            scheduler.save_pretrained(tmp_path / "scheduler")
        return PipelineFolder(tmp_path)

    return make


def assert_same(ours, scheduler):
    theirs = read_scheduler({**scheduler.config, "_class_name": type(scheduler).__name__})
    np.testing.assert_array_equal(ours.schedule.alphas_cumprod, theirs.schedule.alphas_cumprod)
    assert (ours.prediction_type, ours.defaults) == (theirs.prediction_type, theirs.defaults)


def test_the_pipelines_own_scheduler(folder_of):
    scheduler = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True, **tiny_pipelines.STABLE_DIFFUSION)
    settings = read_settings(folder_of("StableDiffusionXLPipeline", scheduler), None)
    assert settings.defaults["sampler"] == "dpmpp_2m"
    assert settings.defaults["karras"]
    assert_same(settings, scheduler)


OUTDATED = [
    ("DDIMScheduler", {"steps_offset": 0, "clip_sample": True}),
    ("DDIMScheduler", {"steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}),
    ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading", "steps_offset": 0}),
    ("LCMScheduler", {"clip_sample": True}),
]


@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
@pytest.mark.parametrize(("kind", "config"), OUTDATED)
def test_stable_diffusion_mends_outdated_configurations(folder_of, kind, config):
    """Its constructor sets ``steps_offset`` and ``clip_sample`` whatever the file says."""
    scheduler = getattr(diffusers, kind)(**config)
    folder = folder_of("StableDiffusionPipeline", scheduler)
    pipe = tiny_pipelines.tiny_pipeline("StableDiffusionPipeline", scheduler)
    assert pipe.scheduler.config.steps_offset == 1
    assert not pipe.scheduler.config.get("clip_sample")
    assert_same(read_settings(folder, None), pipe.scheduler)


def test_other_pipelines_keep_theirs(folder_of):
    scheduler = diffusers.DDIMScheduler(steps_offset=0, clip_sample=True)
    assert_same(read_settings(folder_of("DiTPipeline", scheduler), None), scheduler)


def test_a_ddim_pipeline_makes_its_scheduler_ddim(folder_of):
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample_range=0.7)
    settings = read_settings(folder_of("DDIMPipeline", scheduler), None)
    assert settings.defaults["sampler"] == "ddim"
    assert_same(settings, tiny_pipelines.tiny_pipeline("DDIMPipeline", scheduler).scheduler)


@pytest.mark.parametrize("sampler", CLASSES)
def test_another_sampler_takes_over_the_configuration(folder_of, sampler):
    """SD 1.5's own PNDM, replaced as its users replace it."""
    scheduler = diffusers.PNDMScheduler(**tiny_pipelines.STABLE_DIFFUSION, skip_prk_steps=True, set_alpha_to_one=False)
    folder = folder_of("StableDiffusionXLPipeline", scheduler)
    settings = read_settings(folder, sampler)
    assert settings.defaults["sampler"] == sampler
    saved = json.loads((folder.path / "scheduler" / "scheduler_config.json").read_text())
    configured = with_algorithm(CLASSES[sampler], sampler, saved)
    assert_same(settings, peers.scheduler_class(CLASSES[sampler]).from_config(configured))


def test_a_sampler_that_is_no_class_of_diffusers_takes_its_sibling_s_configuration(folder_of):
    scheduler = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True, **tiny_pipelines.STABLE_DIFFUSION)
    folder = folder_of("StableDiffusionXLPipeline", scheduler)
    third, second = read_settings(folder, "dpmpp_3m_sde"), read_settings(folder, "dpmpp_2m_sde")
    options = {"karras": True, "spacing": "leading", "steps_offset": 1}
    assert third.defaults == {"sampler": "dpmpp_3m_sde", **options}
    assert third.sampler_options["dpmpp_2m_sde"] == {
        name: value for name, value in second.defaults.items() if name != "sampler"
    }
    assert second.sampler_options["dpmpp_3m_sde"] == options
    assert third.sampler_options["dpmpp_2m"] == second.sampler_options["dpmpp_2m"]


def test_options_of_a_sampler_are_arguments_of_from_config(folder_of):
    scheduler = diffusers.PNDMScheduler(**tiny_pipelines.STABLE_DIFFUSION)
    folder = folder_of("StableDiffusionXLPipeline", scheduler)
    saved = json.loads((folder.path / "scheduler" / "scheduler_config.json").read_text())
    settings = read_settings(folder, "dpmpp_2m", {"karras": np.True_, "lower_order_final": False})
    wanted = {"use_karras_sigmas": True, "lower_order_final": False}
    assert_same(settings, diffusers.DPMSolverMultistepScheduler.from_config(saved, **wanted))
    json.dumps(settings.defaults)
    with pytest.raises(ExportError, match=r"got 'EulerDiscreteScheduler' \(here: euler\)"):
        read_settings(folder, "EulerDiscreteScheduler")


def test_what_is_not_covered_says_what_is(folder_of):
    folder = folder_of("StableDiffusionPipeline", diffusers.DDIMParallelScheduler())
    with pytest.raises(ExportError, match=r"DDIMParallelScheduler is not covered \(it steps .*\): give --sampler ddim"):
        read_settings(folder, None)
    with pytest.raises(ExportError, match=r"sampler must be one of ddim, .* for DDIMParallelScheduler, got 'parallel'"):
        read_settings(folder, "parallel")
    folder = folder_of("StableDiffusionPipeline", diffusers.PNDMScheduler())
    with pytest.raises(
        ExportError,
        match=r"PNDMScheduler: skip_prk_steps must be True, .* got False: change that or give --sampler",
    ):
        read_settings(folder, None)
    flow = folder_of("StableDiffusion3Pipeline", diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    with pytest.raises(ExportError, match=r"sampler must be one of euler, heun, lcm for FlowMatchEuler.*, got 'ddim'"):
        read_settings(flow, "ddim")
    for sampler in ("euler", "heun", "lcm"):
        assert read_settings(flow, sampler).prediction_type == "flow"
        assert read_settings(flow, sampler).defaults == {"sampler": sampler}
    inverted = folder_of("StableDiffusion3Pipeline", diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True))
    with pytest.raises(ExportError, match=r"config\.json: FlowMatch.*: invert_sigmas must be .* got True"):
        read_settings(inverted, None)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (
            diffusers.EulerDiscreteScheduler(use_karras_sigmas=True, sigma_max=700.0),
            r"EulerDiscreteScheduler: sigma_max must be .* with use_karras_sigmas, got 700\.0: change that or give"
            r" --sampler ddim \(sampler='ddim' in Python\), the nearest that reads it, or ddpm",
        ),
        (diffusers.DDIMParallelScheduler(), r"DDIMParallelScheduler is not covered \(it .*\): give --sampler ddim"),
        (
            diffusers.SCMScheduler(),
            r"SCMScheduler is not covered \(its timesteps are .*\): choose a sampler, one of ddim",
        ),
    ],
    ids=["entry", "class", "other-levels"],
)
def test_a_refusal_says_which_option_to_give(folder_of, scheduler, message):
    folder = folder_of("StableDiffusionXLPipeline", scheduler)
    with pytest.raises(ExportError, match=message) as caught:
        read_settings(folder, None)
    if "--sampler" in message:
        sampler = str(caught.value).partition("--sampler ")[2].split()[0]
        saved = json.loads((folder.path / "scheduler" / "scheduler_config.json").read_text())
        made = peers.scheduler_class(CLASSES[sampler]).from_config(saved)
        assert_same(read_settings(folder, sampler), made)


@pytest.mark.parametrize("config", [{}, {"_class_name": None}, {"_class_name": "DDIMScheduler", "beta_start": "x"}])
def test_a_configuration_that_is_none(folder_of, config):
    with pytest.raises(ExportError, match=r"scheduler_config\.json: "):
        read_settings(folder_of("DDPMPipeline", config), None)


@pytest.mark.parametrize("named", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler"])
def test_the_class_is_that_of_model_index_as_diffusers_makes_it(folder_of, tmp_path, named):
    """A scheduler that is swapped leaves its name behind in scheduler_config.json."""
    folder_of("StableDiffusionXLPipeline", diffusers.DDIMScheduler(**tiny_pipelines.STABLE_DIFFUSION))
    index = {"_class_name": "StableDiffusionXLPipeline", "scheduler": ["diffusers", named]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    config = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    assert_same(read_settings(PipelineFolder(tmp_path), None), getattr(diffusers, named).from_config(config))


def test_a_class_that_is_not_covered_is_so_by_model_index_too(folder_of, tmp_path):
    folder_of("StableDiffusionXLPipeline", diffusers.DDIMScheduler())
    index = {"_class_name": "StableDiffusionXLPipeline", "scheduler": ["diffusers", "DDIMParallelScheduler"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ExportError, match=r"DDIMParallelScheduler is not covered \(it steps .*\): give --sampler ddim"):
        read_settings(PipelineFolder(tmp_path), None)
