"""Our schedulers against diffusers' own: whole runs, and steps taken in any order, with the same generator."""

import numpy as np
import pytest
import tolerances
import torch

from stepfuse.integrations import diffusers as ours

diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

from stepfuse.integrations.diffusers import schedulers as diffusers_schedulers  # noqa: E402 (imports diffusers)

SHAPE = (2, 3, 5, 4)
ONE_STEP = ("DDIMScheduler", "DDPMScheduler", "LCMScheduler", "DDIMInverseScheduler")
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def ddim(**config):
    return "DDIMScheduler", config, {}


def dpm(**config):
    return "DPMSolverMultistepScheduler", config, {}


RUNS = {
    "ddim": ddim(),
    "ddim-scaled-offset": ddim(
        beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False, clip_sample=False
    ),
    "ddim-cosine-clip-2": ddim(beta_schedule="squaredcos_cap_v2", clip_sample_range=2.0),
    "ddim-sample": ddim(prediction_type="sample", timestep_spacing="linspace"),
    "ddim-v-zero-snr": ddim(prediction_type="v_prediction", **ZERO_SNR),
    "ddim-eta": ("DDIMScheduler", {}, {"eta": 0.4}),
    "ddim-eta-zero-snr": ("DDIMScheduler", {"prediction_type": "v_prediction", **ZERO_SNR}, {"eta": 0.9}),
    "ddim-clipped-output": ("DDIMScheduler", {}, {"eta": 0.3, "use_clipped_model_output": True}),
    "inverse": ("DDIMInverseScheduler", {"clip_sample_range": 0.7}, {}),
    "inverse-scaled-offset": (
        "DDIMInverseScheduler",
        {"beta_schedule": "scaled_linear", "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False},
        {},
    ),
    "inverse-v-zero-snr": ("DDIMInverseScheduler", {"prediction_type": "v_prediction", **ZERO_SNR}, {}),
    "inverse-sample": ("DDIMInverseScheduler", {"prediction_type": "sample", "set_alpha_to_one": False}, {}),
    "ddpm": ("DDPMScheduler", {}, {}),
    "ddpm-large": ("DDPMScheduler", {"variance_type": "fixed_large", "clip_sample": False}, {}),
    "ddpm-small-log": ("DDPMScheduler", {"variance_type": "fixed_small_log", "prediction_type": "sample"}, {}),
    "ddpm-v-zero-snr": ("DDPMScheduler", {"prediction_type": "v_prediction", **ZERO_SNR}, {}),
    "ddpm-sigmoid": ("DDPMScheduler", {"beta_schedule": "sigmoid"}, {}),
    "lcm": ("LCMScheduler", {}, {}),
    "lcm-v-clip": (
        "LCMScheduler",
        {"prediction_type": "v_prediction", "clip_sample": True, "timestep_scaling": 5.0},
        {},
    ),
    "lcm-sample": ("LCMScheduler", {"prediction_type": "sample", "original_inference_steps": 20}, {}),
    "dpm-order-1": dpm(solver_order=1),
    **{
        f"{algorithm}-order-3-{prediction}": dpm(
            algorithm_type=algorithm,
            solver_order=3,
            prediction_type=prediction,
            final_sigmas_type="zero" if algorithm.endswith("++") else "sigma_min",
        )
        for algorithm in ("dpmsolver", "dpmsolver++", "sde-dpmsolver++")
        for prediction in ("epsilon", "v_prediction")
    },
    "dpm-order-3-many": dpm(solver_order=3, use_karras_sigmas=True, lower_order_final=False),
    "dpm-order-3-flow": dpm(use_flow_sigmas=True, prediction_type="flow_prediction", solver_order=3),
    "dpm-zero-snr": dpm(prediction_type="v_prediction", **ZERO_SNR),
    "dpm-karras": dpm(use_karras_sigmas=True, euler_at_final=True),
    "dpm-exponential": dpm(use_exponential_sigmas=True),
    "dpm-lu": dpm(use_lu_lambdas=True, lower_order_final=False),
    "dpm-flow": dpm(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
    "dpm-flow-sde": dpm(use_flow_sigmas=True, prediction_type="flow_prediction", algorithm_type="sde-dpmsolver++"),
    **{
        f"{algorithm}-{solver}-{prediction}": dpm(
            algorithm_type=algorithm,
            solver_type=solver,
            prediction_type=prediction,
            final_sigmas_type="zero" if algorithm.endswith("++") else "sigma_min",
        )
        for algorithm in ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")
        for solver in ("midpoint", "heun")
        for prediction in ("epsilon", "sample", "v_prediction")
    },
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is deprecated:FutureWarning",  # dpmsolver, by diffusers itself
    "ignore:__array__ implementation:DeprecationWarning:diffusers",
)


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    """Fails where a step is left to diffusers."""

    def refuse(scheduler, reason):
        raise AssertionError(f"{scheduler}: {reason}")

    monkeypatch.setattr(diffusers_schedulers, "warn_once", refuse)


def noise(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def network(x, t):
    return torch.tanh(1.3 * x + 0.1 * torch.sin(torch.as_tensor(t) / 300.0))


def pair(name, config):
    return getattr(diffusers, name)(**config), getattr(ours, name)(**config)


def walk(scheduler, x, timesteps, seed=0, **options):
    """All outputs of a run, as tuples, and where its generator ended."""
    generator, outputs = torch.Generator().manual_seed(seed), []
    noisy = {} if isinstance(scheduler, diffusers.DDIMInverseScheduler) else {"generator": generator}
    for t in timesteps:
        seen = scheduler.scale_model_input(x, t)
        outputs.append(scheduler.step(network(seen, t), t, x, return_dict=False, **noisy, **options))
        x = outputs[-1][0]
    return outputs, generator.get_state()


def require_near(found, expected, tolerance, what=""):
    assert found.dtype == expected.dtype
    assert (found - expected).abs().max() <= tolerance * expected.abs().max(), what


def require_same_walk(name, theirs, mine, timesteps=None, x=None, **options):
    x = noise(1) if x is None else x
    timesteps = theirs.timesteps if timesteps is None else timesteps
    expected, their_state = walk(theirs, x, timesteps, **options)
    found, my_state = walk(mine, x, timesteps, **options)
    largest = max(tensor.abs().max() for output in expected for tensor in output)
    tolerance = tolerances.ONE_STEP if name in ONE_STEP else tolerances.MULTISTEP
    for step, outputs in enumerate(zip(expected, found, strict=True)):
        assert len(outputs[0]) == len(outputs[1])
        for their_tensor, my_tensor in zip(*outputs, strict=True):
            assert my_tensor.dtype == their_tensor.dtype
            assert (my_tensor - their_tensor).abs().max() <= tolerance * largest, f"step {step}"
    assert torch.equal(my_state, their_state)


@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("run", RUNS)
def test_whole_run(run, steps):
    name, config, options = RUNS[run]
    theirs, mine = pair(name, config)
    if "dpmsolver-" in run and steps == 1:
        steps = 2  # a single step of these divides by the noisiest timestep's signal: 157 times the rounding
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(steps)
    assert torch.equal(mine.timesteps, theirs.timesteps)
    require_same_walk(name, theirs, mine, **options)


@pytest.mark.parametrize("steps", [1000, None], ids=["set", "unset"])
def test_all_timesteps_of_ddpm(steps):
    theirs, mine = pair("DDPMScheduler", {})
    if steps:
        for scheduler in (theirs, mine):
            scheduler.set_timesteps(steps)
    require_same_walk("DDPMScheduler", theirs, mine)


@pytest.mark.parametrize("kind", [int, np.int64, torch.tensor, lambda t: torch.tensor([t])])
@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_timesteps_in_any_order_and_kind(name, kind):
    theirs, mine = pair(name, {})
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(10)
    for t in (300, 0, 900, 300):
        expected, found = (
            s.step(noise(3), kind(t), noise(2), torch.manual_seed(0) if name[:4] == "DDPM" else 0.0)
            for s in (theirs, mine)
        )
        for key in ("prev_sample", "pred_original_sample"):
            require_near(found[key], expected[key], tolerances.ONE_STEP, f"{key} at {t}")


@pytest.mark.parametrize("t", [0, 1, 10, 499, 801])
def test_ddim_steps_between_its_timesteps(t):
    """Image editing asks for timesteps that are not in the run."""
    theirs, mine = pair("DDIMScheduler", {})
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(7)
    require_same_walk("DDIMScheduler", theirs, mine, [t])


@pytest.mark.parametrize("begin", ["set_begin_index", "found"])
@pytest.mark.parametrize("name", ["LCMScheduler", "DPMSolverMultistepScheduler"])
def test_run_from_the_middle(name, begin):
    """As pipelines that start from an image do."""
    theirs, mine = pair(name, {})
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(10)
        if begin == "set_begin_index":
            scheduler.set_begin_index(6)
    x = mine.add_noise(noise(5), noise(6), mine.timesteps[6:7])
    assert torch.equal(x, theirs.add_noise(noise(5), noise(6), theirs.timesteps[6:7]))
    require_same_walk(name, theirs, mine, mine.timesteps[6:], x)
    assert mine.step_index == theirs.step_index == 10


@pytest.mark.parametrize("name", ["DDPMScheduler", "LCMScheduler", "DPMSolverMultistepScheduler"])
def test_timesteps_of_ones_own(name):
    theirs, mine = pair(name, {})
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(timesteps=[999, 639, 500, 19, 3])
    require_same_walk(name, theirs, mine)


def test_part_of_an_lcm_run():
    theirs, mine = pair("LCMScheduler", {})
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(4, strength=0.6)
    require_same_walk("LCMScheduler", theirs, mine)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_second_run_with_other_steps_and_levels(name):
    """What was kept of the first run is not taken for the second."""
    theirs, mine = pair(name, {"prediction_type": "v_prediction"})
    for steps in (6, 9):
        for scheduler in (theirs, mine):
            scheduler.set_timesteps(steps)
        require_same_walk(name, theirs, mine)
    for scheduler in (theirs, mine):
        scheduler.register_to_config(prediction_type="sample", clip_sample=False)
        scheduler.alphas_cumprod = scheduler.alphas_cumprod**2
        scheduler.set_timesteps(9)
    require_same_walk(name, theirs, mine)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_levels_of_another_dtype(dtype):
    scheduler, wide = ours.DDIMScheduler(), ours.DDIMScheduler()
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(dtype)
    wide.alphas_cumprod = scheduler.alphas_cumprod.double()
    results = []
    for one in (scheduler, wide):
        one.set_timesteps(5)
        results.append(one.step(noise(1), 400, noise(2)).prev_sample)
    require_near(*results, tolerances.ONE_STEP)


def test_levels_changed_in_place():
    scheduler = ours.DDIMScheduler()
    scheduler.set_timesteps(5)
    before = scheduler.step(noise(1), 400, noise(2)).prev_sample
    scheduler.alphas_cumprod *= 0.9
    assert not torch.allclose(scheduler.step(noise(1), 400, noise(2)).prev_sample, before, atol=0.01)


@pytest.mark.parametrize(
    ("name", "config", "options"),
    [("DDIMScheduler", {}, {"eta": 0.7}), ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {})],
)
def test_noise_that_is_given(name, config, options):
    theirs, mine = pair(name, config)
    results = []
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(5)
        x = noise(1)
        for i, t in enumerate(scheduler.timesteps):
            x = scheduler.step(network(x, t), t, x, variance_noise=noise(20 + i), **options).prev_sample
        results.append(x)
    require_near(*results[::-1], tolerances.MULTISTEP)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "LCMScheduler"])
def test_a_generator_a_sample(name):
    theirs, mine = pair(name, {})
    results = []
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(4)
        generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        options = {"eta": 1.0} if name == "DDIMScheduler" else {}
        t = scheduler.timesteps[1]
        results.append(scheduler.step(noise(1), t, noise(2), generator=generators, **options).prev_sample)
    require_near(*results[::-1], tolerances.ONE_STEP)
    assert not torch.allclose(results[1][0] - results[1][1], torch.zeros(SHAPE[1:]), atol=0.1)


def test_learned_variance_of_dpm_is_set_aside():
    theirs, mine = pair("DPMSolverMultistepScheduler", {"variance_type": "learned_range"})
    results = []
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(3)
        both = torch.cat([noise(1), noise(7)], dim=1)
        results.append(scheduler.step(both, scheduler.timesteps[0], noise(2)).prev_sample)
    require_near(*results[::-1], tolerances.ONE_STEP)


@pytest.mark.parametrize("name", [*ONE_STEP, "DPMSolverMultistepScheduler"])
def test_step_before_timesteps_are_set(name):
    scheduler = getattr(ours, name)()
    if name == "DDPMScheduler":  # has all thousand from the start
        assert scheduler.step(noise(1), 999, noise(2)).prev_sample.shape == SHAPE
        return
    with pytest.raises(ValueError, match="set_timesteps must be called before step, got num_inference_steps None"):
        scheduler.step(noise(1), 999, noise(2))


def test_two_sources_of_noise():
    scheduler = ours.DDIMScheduler()
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="pass generator or variance_noise, got both"):
        scheduler.step(noise(1), 200, noise(2), eta=0.5, generator=torch.manual_seed(0), variance_noise=noise(3))


def test_timestep_that_ddpm_does_not_have():
    scheduler = ours.DDPMScheduler()
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match="timestep must be one of the scheduler's timesteps, got 5"):
        scheduler.step(noise(1), 5, noise(2))


@pytest.mark.parametrize("name", [*ONE_STEP])
def test_timestep_that_is_no_whole_number(name):
    scheduler = getattr(ours, name)()
    scheduler.set_timesteps(10)
    if name == "LCMScheduler":
        scheduler.set_begin_index(0)
    with pytest.raises(TypeError):
        scheduler.step(noise(1), 0.5, noise(2))
