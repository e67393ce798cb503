"""Compiled pipelines against the same pipelines stepped by diffusers: images, latents, callbacks, what a call takes."""

import gc
import inspect
import threading
import weakref

import numpy as np
import pytest
import tolerances

diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

import tiny_pipelines  # noqa: E402
import torch  # noqa: E402

from stepfuse.integrations.diffusers import compile  # noqa: E402
from stepfuse.integrations.diffusers.torch_step import warn_once  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("where"),
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]

STABLE = tiny_pipelines.STABLE_DIFFUSION
PROMPTS, NEGATIVE = tiny_pipelines.PROMPTS, ["grey", "a dog in the rain"]
TEXT = ("StableDiffusionPipeline", "StableDiffusionPipeline-v", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline")
FLOW_UNIPC = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
FLOW_EULER = "FlowMatchEulerDiscreteScheduler"
IMAGE = np.random.default_rng(0).random((2, 16, 16, 3), dtype=np.float32)


@pytest.fixture(scope="module")
def pipelines():
    """Pipelines by name, made once; their schedulers are assigned anew by each test."""
    made = {}

    def get(name, scheduler=None):
        if name not in made:
            made[name] = tiny_pipelines.tiny_pipeline(name)
        pipe = object.__new__(type(made[name]))
        pipe.__dict__.update(made[name].__dict__)
        if scheduler is not None:
            pipe.scheduler = scheduler
        return pipe

    torch.set_num_threads(1)
    return get


def scheduler(name, **config):
    return getattr(diffusers, name)(**config)


def arguments(name, **changes):
    """Of a call for two pictures."""
    if name in ("DDPMPipeline", "DDIMPipeline"):
        given = {"batch_size": 2}
    elif name == "DiTPipeline":
        given = {"class_labels": [3, 700]}
    else:
        given = {"prompt": PROMPTS, "negative_prompt": NEGATIVE, "height": 16, "width": 16, "guidance_scale": 5.0}
    return {**given, "num_inference_steps": 4, "output_type": "np", **changes}


def generate(pipe, **given):
    """A call from a fixed seed, also of what takes noise from torch's own generator."""
    torch.manual_seed(5)
    seeded = {"generator": torch.Generator().manual_seed(3)} | given
    return pipe(**{key: value for key, value in seeded.items() if value is not None}).images


def same(pipe, **given):
    """Calls both and compares; returns the images of diffusers."""
    want, got = generate(pipe, **given), generate(compile(pipe), **given)
    assert type(got) is type(want)
    assert distance(got, want) < tolerances.COMPILED
    return np.asarray(want)


def distance(one, other):
    """The largest difference; of latents, which a random network lets grow, as a share of the largest."""
    one, other = np.asarray(one), np.asarray(other)
    return np.abs(one - other).max() / max(1.0, np.abs(other).max())


@pytest.mark.parametrize("name", tiny_pipelines.NAMES)
def test_images_are_those_of_diffusers(name, pipelines):
    images = same(pipelines(name), **arguments(name))
    assert images.shape == (2, 16, 16, 3)
    assert images.std() > 0.01


@pytest.mark.parametrize("name", ["DiTPipeline", *TEXT])
def test_images_with_and_without_guidance(name, pipelines):
    pipe = pipelines(name)
    kind = {} if name == "DiTPipeline" else {"output_type": "latent"}
    plain = same(pipe, **arguments(name, guidance_scale=1.0, **kind))
    guided = same(pipe, **arguments(name, guidance_scale=5.0, **kind))
    assert distance(plain, guided) > 100 * tolerances.COMPILED


SCHEDULERS = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "ddim-trailing": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}),
    "dpm": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "deis": ("DEISMultistepScheduler", {"solver_order": 3}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
    "dpm-exponential": ("DPMSolverMultistepScheduler", {"use_exponential_sigmas": True}),
    "euler-beta": ("EulerDiscreteScheduler", {"use_beta_sigmas": True, "sigma_min": 0.1}),
    "unipc": ("UniPCMultistepScheduler", {"use_karras_sigmas": True, "solver_order": 3}),
    "lms": ("LMSDiscreteScheduler", {"use_karras_sigmas": True}),
    "dpm-single": ("DPMSolverSinglestepScheduler", {"solver_order": 3}),
    "kdpm2": ("KDPM2DiscreteScheduler", {"use_karras_sigmas": True}),
    "kdpm2-a": ("KDPM2AncestralDiscreteScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}


@pytest.mark.parametrize(("kind", "config"), SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_with_every_scheduler(name, kind, config, pipelines):
    """Noise too: it comes from the call's generator, as with diffusers."""
    made = getattr(diffusers, kind).from_config({**STABLE, **config})  # leaves out what the class does not have
    same(pipelines(name, made), **arguments(name, output_type="latent"))


@pytest.mark.parametrize(
    ("name", "kind", "config", "given"),
    [
        ("DDIMPipeline", "DDIMScheduler", {}, {"eta": 0.7}),
        ("DDIMPipeline", "DDIMScheduler", {}, {"eta": 0.3, "use_clipped_model_output": True}),
        ("DDIMPipeline", "DDIMScheduler", {"thresholding": True, "sample_max_value": 1.5}, {}),
        ("DDPMPipeline", "DDPMScheduler", {"variance_type": "fixed_small_log"}, {"generator": None}),
        ("DiTPipeline", "DDPMScheduler", {"clip_sample": False}, {}),
        ("DiTPipeline", "DPMSolverMultistepScheduler", {}, {"guidance_scale": 1.0}),
        ("StableDiffusionPipeline", None, {}, {"guidance_rescale": 0.7}),
        ("StableDiffusionPipeline", None, {}, {"eta": 1.0, "num_images_per_prompt": 2}),
        ("StableDiffusionPipeline", "EulerDiscreteScheduler", STABLE, {"timesteps": [900, 500, 120]}),
        ("StableDiffusionPipeline", "EulerDiscreteScheduler", STABLE, {"sigmas": [9.0, 1.0, 0.0]}),
        ("StableDiffusionPipeline", "LCMScheduler", STABLE, {"timesteps": [999, 499]}),
        ("StableDiffusionPipeline", "TCDScheduler", STABLE, {"eta": 0.3}),
        ("DiTPipeline", "TCDScheduler", {}, {}),  # gives no eta: the scheduler's own default
        ("StableDiffusionXLPipeline", "DPMSolverMultistepScheduler", STABLE, {"denoising_end": 0.6}),
        ("StableDiffusionXLPipeline", None, {}, {"height": 32, "width": 16, "prompt_2": ["one", "two"]}),
        ("StableDiffusionXLPipeline", "EDMEulerScheduler", {}, {}),
        ("StableDiffusionXLPipeline", "EDMDPMSolverMultistepScheduler", {"solver_order": 3}, {}),
        ("StableDiffusion3Pipeline", None, {}, {"sigmas": [1.0, 0.8, 0.3]}),
        ("StableDiffusion3Pipeline", "UniPCMultistepScheduler", FLOW_UNIPC, {}),
        ("StableDiffusion3Pipeline", FLOW_EULER, {"use_dynamic_shifting": True, "base_image_seq_len": 16}, {}),
        ("StableDiffusion3Pipeline", FLOW_EULER, {"use_dynamic_shifting": True}, {"mu": 2.0, "sigmas": [1.0, 0.5]}),
        ("StableDiffusion3Pipeline", FLOW_EULER, {"use_karras_sigmas": True, "shift_terminal": 0.1}, {}),
        ("StableDiffusion3Pipeline", "FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, {}),
        ("StableDiffusion3Pipeline", "FlowMatchLCMScheduler", {"shift": 3.0}, {"sigmas": [1.0, 0.8, 0.3]}),
        ("StableDiffusion3Pipeline", "FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, {}),
    ],
)
def test_arguments_act_as_in_diffusers(name, kind, config, given, pipelines):
    pipe = pipelines(name, kind and scheduler(kind, **config))
    same(pipe, **arguments(name, **given))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("StableDiffusion", "DDIMScheduler"),
        ("StableDiffusion", "DPMSolverMultistepScheduler"),
        ("StableDiffusion", "HeunDiscreteScheduler"),
        ("StableDiffusion", "UniPCMultistepScheduler"),
        ("StableDiffusionXL", "EulerDiscreteScheduler"),
        ("StableDiffusion3", None),
    ],
)
def test_image_to_image(name, kind, pipelines):
    parts = pipelines(f"{name}Pipeline", kind and scheduler(kind, **STABLE)).components
    extra = {"requires_safety_checker": False} if name == "StableDiffusion" else {}
    pipe = getattr(diffusers, f"{name}Img2ImgPipeline")(**parts, **extra)
    pipe.set_progress_bar_config(disable=True)
    given = {"prompt": PROMPTS, "image": IMAGE, "num_inference_steps": 8, "output_type": "np"}
    assert distance(same(pipe, **given, strength=0.5), same(pipe, **given, strength=0.9)) > 0.01


def test_the_result_is_a_pipeline_of_the_same_class(pipelines, tmp_path):
    pipe = pipelines("StableDiffusionPipeline")
    compiled = compile(pipe)
    assert isinstance(compiled, diffusers.StableDiffusionPipeline)
    assert inspect.signature(compiled) == inspect.signature(pipe)
    assert compiled.unet is pipe.unet
    assert compiled.to("cpu") is compiled
    assert type(compiled.original) is diffusers.StableDiffusionPipeline
    assert compile(compiled).unet is pipe.unet
    given = arguments("StableDiffusionPipeline", output_type="latent")
    torch.testing.assert_close(generate(compiled.original, **given), generate(pipe, **given), rtol=0, atol=0)

    compiled.save_pretrained(tmp_path)
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert distance(generate(loaded, **given), generate(compiled, **given)) < tolerances.COMPILED


def test_outputs_come_in_every_form(pipelines):
    pipe = pipelines("StableDiffusionPipeline")
    compiled = compile(pipe)
    for form in ("pil", "np", "pt", "latent"):
        given = arguments("StableDiffusionPipeline", output_type=form)
        want, got = generate(pipe, **given), generate(compiled, **given)
        assert type(got) is type(want)
        if form == "pil":
            assert np.abs(np.asarray(got[0], dtype=int) - np.asarray(want[0], dtype=int)).max() <= 1
    images, nsfw = compiled(**arguments("StableDiffusionPipeline"), return_dict=False)
    assert nsfw is None
    assert images.shape == (2, 16, 16, 3)


def test_the_scheduler_may_be_replaced_between_calls(pipelines):
    pipe = pipelines("StableDiffusionPipeline")
    compiled = compile(pipe)
    given = arguments("StableDiffusionPipeline", output_type="latent")
    first = generate(compiled, **given)
    pipe.scheduler = compiled.scheduler = scheduler("LCMScheduler", **STABLE)
    second = generate(compiled, **given)
    assert distance(second, generate(pipe, **given)) < tolerances.COMPILED
    assert distance(second, first) > 100 * tolerances.COMPILED


def record(into, change=None):
    def callback(pipe, step, timestep, tensors):
        into.append((step, float(timestep), {name: value.clone() for name, value in tensors.items()}))
        return change(pipe, step, tensors) or {} if change else {}

    return callback


@pytest.mark.parametrize("name", TEXT)
def test_callbacks_see_the_same_tensors(name, pipelines):
    pipe, seen = pipelines(name), ([], [])
    names = pipe._callback_tensor_inputs
    for one, into in zip((pipe, compile(pipe)), seen, strict=True):
        given = arguments(name, callback_on_step_end=record(into), callback_on_step_end_tensor_inputs=names)
        generate(one, **given)
    assert len(seen[0]) == 4
    for want, got in zip(*seen, strict=True):
        assert got[:2] == want[:2]
        assert got[2].keys() == want[2].keys() == set(names)
        for tensor in names:
            assert distance(got[2][tensor], want[2][tensor]) < tolerances.COMPILED


def halved(pipe, step, tensors):
    return {"latents": tensors["latents"] * 0.5}


def halved_in_place(pipe, step, tensors):
    tensors["latents"].mul_(0.5)


def interrupted(pipe, step, tensors):
    pipe._interrupt = step == 1


def less_guided(pipe, step, tensors):
    pipe._guidance_scale = 2.0 if step > 1 else 5.0


def unguided(pipe, step, tensors):
    if step == 1:
        pipe._guidance_scale = 0.0
        return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[-1]}


def conditioned_otherwise(pipe, step, tensors):
    return {"prompt_embeds": -tensors["prompt_embeds"]} if step == 1 else {}


@pytest.mark.parametrize("change", [halved, halved_in_place, interrupted, less_guided, conditioned_otherwise])
def test_changes_by_a_callback_take_effect(change, pipelines):
    pipe, given = pipelines("StableDiffusion3Pipeline"), arguments("StableDiffusion3Pipeline", output_type="latent")
    callback = {
        "callback_on_step_end": record([], change),
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }
    changed = same(pipe, **given, **callback)
    assert distance(changed, generate(pipe, **given)) > 100 * tolerances.COMPILED


def test_changes_in_place_take_effect_in_inference_mode_too(pipelines):
    """Where tensors have no version that would show them."""
    given = arguments("StableDiffusionPipeline", output_type="latent")
    with torch.inference_mode():
        changed = same(pipelines("StableDiffusionPipeline"), **given, callback_on_step_end=record([], halved_in_place))
        assert distance(changed, generate(pipelines("StableDiffusionPipeline"), **given)) > 1e-3


def test_callbacks_may_end_the_guidance(pipelines):
    pipe, passes = pipelines("StableDiffusionPipeline"), []
    given = arguments("StableDiffusionPipeline", callback_on_step_end=record([], unguided))
    given["callback_on_step_end_tensor_inputs"] = ["prompt_embeds"]
    handle = pipe.unet.register_forward_hook(lambda module, args, output: passes.append(len(args[0])))
    same(pipe, **given)
    handle.remove()
    assert passes == [4, 4, 2, 2] * 2


@pytest.mark.parametrize("change", [halved, interrupted, less_guided, unguided, conditioned_otherwise])
@pytest.mark.parametrize(
    "name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "PNDMScheduler", "HeunDiscreteScheduler"]
)
def test_changes_by_a_callback_take_effect_where_steps_have_a_history(name, change, pipelines):
    pipe = pipelines("StableDiffusionPipeline", scheduler(name, **STABLE))
    callback = {
        "callback_on_step_end": record([], change),
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }
    same(pipe, **arguments("StableDiffusionPipeline", output_type="latent"), **callback)


def test_guidance_may_not_change_unannounced_where_steps_have_a_history(pipelines):
    compiled = compile(pipelines("StableDiffusionPipeline", scheduler("DPMSolverMultistepScheduler", **STABLE)))
    with pytest.raises(ValueError, match="guidance and prompts must stay as they are during a run of DPMSolver"):
        generate(compiled, **arguments("StableDiffusionPipeline", callback_on_step_end=record([], less_guided)))


def test_callbacks_of_diffusers_end_the_guidance_where_steps_have_a_history(pipelines):
    pipe = pipelines("StableDiffusionPipeline", scheduler("PNDMScheduler", **STABLE))
    given = arguments("StableDiffusionPipeline", prompt="a red cat", negative_prompt=None)  # it takes one prompt
    cutoff = diffusers.callbacks.SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=2)
    changed = same(pipe, **given, callback_on_step_end=cutoff)
    assert distance(changed, generate(pipe, **given)) > 100 * tolerances.COMPILED


@pytest.mark.parametrize(
    "name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LCMScheduler"]
)
def test_callbacks_see_the_schedulers_step(name, pipelines):
    pipe, seen = pipelines("StableDiffusionPipeline", scheduler(name, **STABLE)), []

    def look(pipe, step, tensors):
        seen.append(pipe.scheduler.step_index)

    given = arguments("StableDiffusionPipeline", callback_on_step_end=record([], look))
    for one in (pipe, compile(pipe)):
        generate(one, **given)
    half = len(seen) // 2
    assert seen[:half] == seen[half:] == list(range(1, half + 1))


def test_the_deprecated_callback_and_the_progress_bar_advance_at_each_step(pipelines, capsys):
    compiled, steps = compile(pipelines("StableDiffusionPipeline")), []
    compiled.set_progress_bar_config(disable=False, mininterval=0, miniters=1)
    generate(
        compiled,
        **arguments("StableDiffusionPipeline"),
        callback=lambda step, timestep, latents: steps.append((step, latents.mean().item())),
        callback_steps=1,
    )
    assert [step for step, _ in steps] == [0, 1, 2, 3]
    assert len({mean for _, mean in steps}) == 4
    bar = capsys.readouterr().err
    assert all(f"{done}/4" in bar for done in range(5))


def test_an_error_leaves_the_pipeline_usable(pipelines):
    pipe = pipelines("StableDiffusionPipeline")
    compiled, given = compile(pipe), arguments("StableDiffusionPipeline")

    def broken(pipe, step, timestep, tensors):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        generate(compiled, **given, callback_on_step_end=broken)
    handle = compiled.unet.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(compiled, **given)
    handle.remove()
    assert compiled.unet is pipe.unet
    assert compiled.scheduler is pipe.scheduler
    same(pipe, **given)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            ("DDIMParallelScheduler", {}),
            "DDIMParallelScheduler its own step: no scheduler here is of its class (it ste",
        ),
        (("PNDMScheduler", {"skip_prk_steps": False}), "PNDMScheduler: skip_prk_steps must be True, since Runge-Kutta"),
        (("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}), "final_sigmas_type must be 'zero'"),
    ],
)
def test_schedulers_that_are_not_covered_step_by_themselves(config, message, pipelines, caplog):
    pipe = pipelines("StableDiffusionPipeline", scheduler(config[0], **STABLE, **config[1]))
    warn_once.cache_clear()
    same(pipe, **arguments("StableDiffusionPipeline"))
    assert message in caplog.text


def test_a_scheduler_changed_behind_its_configuration_acts_as_it_is(pipelines, caplog):
    changed = scheduler("DDIMScheduler", **STABLE, clip_sample=False)
    changed.alphas_cumprod = changed.alphas_cumprod**2
    caplog.set_level("INFO", logger="stepfuse")
    same(pipelines("StableDiffusionPipeline", changed), **arguments("StableDiffusionPipeline"))
    assert "runs its own loop, with the fused step of DDIMScheduler" in caplog.text


@pytest.mark.parametrize(
    ("name", "kind", "given", "message"),
    [
        (
            "StableDiffusionPipeline",
            "EulerDiscreteScheduler",
            {"sigmas": [9.0, 1.0]},
            "sigmas must end at 0 with Euler",
        ),
        ("DDPMPipeline", "EulerDiscreteScheduler", {}, "DDPMPipeline does not scale its network's inputs as Euler"),
        ("DDIMPipeline", None, {"eta": 1.5}, "eta must be between 0 and 1, got 1.5"),
    ],
)
def test_what_only_the_pipeline_s_own_loop_does_is_refused(name, kind, given, message, pipelines):
    compiled = compile(pipelines(name, kind and scheduler(kind, **STABLE)))
    with pytest.raises(ValueError, match=message):
        generate(compiled, **arguments(name, **given))


def test_a_pipeline_is_not_called_within_its_own_call(pipelines):
    compiled, given = compile(pipelines("StableDiffusionPipeline")), arguments("StableDiffusionPipeline")
    with pytest.raises(RuntimeError, match="cannot be called from its own callback"):
        generate(compiled, **given, callback_on_step_end=lambda *_: compiled(**given))


def test_calls_from_several_threads_run_one_at_a_time(pipelines):
    pipe = pipelines("StableDiffusionPipeline")
    compiled, given, got = compile(pipe), arguments("StableDiffusionPipeline", output_type="latent"), [None] * 4

    def call(index):
        got[index] = compiled(**given, generator=torch.Generator().manual_seed(index)).images

    threads = [threading.Thread(target=call, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, images in enumerate(got):
        want = pipe(**given, generator=torch.Generator().manual_seed(index)).images
        assert distance(images, want) < tolerances.COMPILED


def test_half_precision_and_autocast(pipelines):
    """The network runs in bfloat16 in both; only the states between differ."""
    pipe, given = pipelines("DiTPipeline"), arguments("DiTPipeline")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want, got = generate(pipe, **given), generate(compile(pipe), **given)
    assert distance(got, want) < tolerances.COMPILED_BFLOAT16
    assert distance(got, generate(pipe, **given)) > tolerances.COMPILED


def test_a_compiled_pipeline_is_freed_with_its_last_reference(pipelines):
    compiled = compile(pipelines("DDIMPipeline"))
    generate(compiled, **arguments("DDIMPipeline"))
    gone = weakref.ref(compiled._stepfuse)
    del compiled
    gc.collect()
    assert gone() is None
