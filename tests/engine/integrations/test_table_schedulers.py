"""Schedulers that step along a table against diffusers' own: the same calls, whole runs, the same generator."""

import copy
import inspect
import sys
from contextlib import nullcontext

import numpy as np
import peers
import pytest
import tolerances
import torch

from stepfuse.integrations import diffusers as ours
from stepfuse.integrations.diffusers.torch_step import step_with

diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array_:DeprecationWarning",  # diffusers, or numpy for it
    "ignore:.*scale_model_input:UserWarning:diffusers",  # LMS where a test steps without a network
)

SHAPE = (2, 3, 5, 4)
SD = {**peers.SCALED, "steps_offset": 1, "timestep_spacing": "leading"}
V = {"prediction_type": "v_prediction"}
ZERO_SNR = {**peers.SCALED, **V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
FLOW_UNIPC = {"use_flow_sigmas": True, "flow_shift": 5.0, "prediction_type": "flow_prediction"}
DYNAMIC = {"use_dynamic_shifting": True}
PLMS = {"skip_prk_steps": True}
RUNS = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-sdxl": ("EulerDiscreteScheduler", SD),
    "euler-karras-v": ("EulerDiscreteScheduler", {**peers.SCALED, **V, "use_karras_sigmas": True}),
    "euler-zero-snr": ("EulerDiscreteScheduler", ZERO_SNR),
    "euler-sample": ("EulerDiscreteScheduler", {"prediction_type": "sample", "use_beta_sigmas": True}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "euler-a-zero-snr": ("EulerAncestralDiscreteScheduler", ZERO_SNR),
    "heun": ("HeunDiscreteScheduler", SD),
    "heun-clip": ("HeunDiscreteScheduler", {**V, "clip_sample": True, "use_karras_sigmas": True}),
    "pndm": ("PNDMScheduler", {**PLMS, **SD}),
    "pndm-v": ("PNDMScheduler", {**PLMS, **V, "timestep_spacing": "trailing", "set_alpha_to_one": True}),
    "pndm-linspace": ("PNDMScheduler", {**PLMS, "timestep_spacing": "linspace"}),
    "ipndm": ("IPNDMScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "unipc-3": ("UniPCMultistepScheduler", {**SD, "solver_order": 3, "use_karras_sigmas": True}),
    "unipc-noise": (
        "UniPCMultistepScheduler",
        {**SD, "predict_x0": False, "solver_type": "bh1", "final_sigmas_type": "sigma_min"},
    ),
    "unipc-flow": ("UniPCMultistepScheduler", FLOW_UNIPC),
    "deis": ("DEISMultistepScheduler", SD),
    "deis-3": ("DEISMultistepScheduler", {**V, "solver_order": 3, "lower_order_final": False}),
    "lms": ("LMSDiscreteScheduler", {}),
    "lms-karras": ("LMSDiscreteScheduler", {**SD, **V, "use_karras_sigmas": True}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "kdpm2-v": ("KDPM2DiscreteScheduler", {**SD, **V, "use_karras_sigmas": True}),
    "kdpm2-a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpm-single": ("DPMSolverSinglestepScheduler", {}),
    "dpm-single-3": ("DPMSolverSinglestepScheduler", {"solver_order": 3, "use_karras_sigmas": True}),
    "dpm-sde": ("DPMSolverSDEScheduler", {"noise_sampler_seed": 3}),
    "dpm-sde-v": ("DPMSolverSDEScheduler", {**SD, **V, "use_karras_sigmas": True}),
    "sa-solver": ("SASolverScheduler", {}),
    "sa-solver-noise": (
        "SASolverScheduler",
        {**SD, "algorithm_type": "noise_prediction", "predictor_order": 3, "corrector_order": 1},
    ),
    "tcd": ("TCDScheduler", {}),
    "tcd-v": ("TCDScheduler", {**V, "original_inference_steps": 20}),
    "edm-euler": ("EDMEulerScheduler", {}),
    "edm-euler-v": ("EDMEulerScheduler", {**V, "sigma_schedule": "exponential"}),
    "edm-dpm": ("EDMDPMSolverMultistepScheduler", {}),
    "edm-dpm-heun": ("EDMDPMSolverMultistepScheduler", {**V, "solver_type": "heun"}),
    "cm": ("CMStochasticIterativeScheduler", {}),
    "flow": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow-karras": ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True, "shift": 2.0}),
    "flow-stochastic": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    "flow-heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    "flow-lcm": ("FlowMatchLCMScheduler", {"shift": 2.0}),
}
#: Not of a single step, which in two divides by the noisiest timestep's signal, 157 times the rounding, and in the last
#: begins at its least noise.
FROM_TWO_STEPS = ("pndm-v", "deis-3", "edm-euler-v")
#: One run of each class, the first above.
CLASSES = dict(reversed(RUNS.values()))
ONE_STEP = (
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "TCDScheduler", "KDPM2DiscreteScheduler"),
    *("KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler", "EDMEulerScheduler"),
    *("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler"),
)


def noise(seed, dtype=None):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(x, t):
    return torch.tanh(1.3 * x + 0.1 * torch.sin(torch.as_tensor(t) / 300.0))


@pytest.fixture(autouse=True)
def path(monkeypatch):
    """One Brownian path for ``DPMSolverSDEScheduler``, whose own package need not be here."""
    module = sys.modules[peers.scheduler_class("DPMSolverSDEScheduler").__module__]

    def new(like, *_):
        seeds = iter(range(100, 1000))
        return peers.BrownianPath(lambda: noise(next(seeds), torch.float32).to(like.dtype))

    monkeypatch.setattr(module, "BrownianTreeNoiseSampler", new, raising=False)


def pair(name, config, *args, begin=0, **timesteps):
    """Both schedulers with their timesteps set."""
    both = peers.scheduler_class(name)(**config), getattr(ours, name)(**config)
    return set_timesteps(name, both, *args, begin=begin, **timesteps)


def set_timesteps(name, both, *args, begin=0, **timesteps):
    for scheduler in both:
        # In float32 diffusers finds this class's levels as a difference of squares that cancels.
        theirs = name == "KDPM2AncestralDiscreteScheduler" and scheduler is both[0]
        with peers.double_levels(scheduler) if theirs else nullcontext():
            scheduler.set_timesteps(*args, **timesteps)
        if begin and name != "PNDMScheduler":  # which has none, and finds out at its first step
            scheduler.set_begin_index(begin)
    return both


def initial(scheduler, begin=0):
    """The state that a pipeline begins with: noise, or a sample with noise."""
    if not begin:
        return noise(1) * getattr(scheduler, "init_noise_sigma", 1.0)
    if not hasattr(scheduler, "add_noise") and not hasattr(scheduler, "scale_noise"):
        return noise(5)
    add = scheduler.scale_noise if hasattr(scheduler, "scale_noise") else scheduler.add_noise
    times = scheduler.timesteps[begin : begin + 1].expand(len(noise(5)))
    return add(noise(5), times, noise(6)) if hasattr(scheduler, "scale_noise") else add(noise(5), noise(6), times)


def walk(scheduler, begin=0, **options):
    """All outputs of a run, as tuples, and where its generator ended."""
    x, generator, outputs = initial(scheduler, begin).float(), torch.Generator().manual_seed(0), []
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = generator
    for t in scheduler.timesteps[begin:]:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        outputs.append(scheduler.step(network(seen, t).float(), t, x, return_dict=False, **options))
        x = outputs[-1][0].float()
    return outputs, generator.get_state()


def require_same_walk(both, begin=0, **options):
    (expected, their_state), (found, my_state) = (walk(one, begin, **options) for one in both)
    largest = max(
        tensor.abs().max() for tensor in (initial(both[0], begin), *(one for step in expected for one in step))
    )
    assert torch.isfinite(largest)
    tolerance = tolerances.ONE_STEP if type(both[1]).__name__ in ONE_STEP else tolerances.MULTISTEP
    for step, outputs in enumerate(zip(expected, found, strict=True)):
        assert len(outputs[0]) == len(outputs[1])
        for theirs, mine in zip(*outputs, strict=True):
            assert (mine - theirs).abs().max() <= tolerance * largest, f"step {step}"
    assert torch.equal(my_state, their_state)
    assert getattr(both[1], "step_index", None) == getattr(both[0], "step_index", None)


@pytest.mark.parametrize("run", RUNS)
def test_whole_runs(run):
    name, config = RUNS[run]
    both = peers.scheduler_class(name)(**config), getattr(ours, name)(**config)
    for steps in (1, 2, 5, 10):
        if run in FROM_TWO_STEPS and steps == 1:
            continue
        set_timesteps(name, both, steps)
        torch.testing.assert_close(both[1].timesteps, both[0].timesteps, rtol=0, atol=1e-3, check_dtype=False)
        require_same_walk(both)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("begin", [3, 8])
def test_runs_that_begin_with_an_image(name, begin):
    """As pipelines do: from a multiple of the evaluations that a step takes."""
    begin *= getattr(diffusers, name).order if "SDE" not in name else 2
    both = pair(name, CLASSES[name], 10, begin=begin)
    torch.testing.assert_close(initial(both[1], begin).float(), initial(both[0], begin).float(), rtol=1e-5, atol=1e-5)
    require_same_walk(both, begin)


@pytest.mark.parametrize(
    ("name", "config", "timesteps"),
    [
        ("EulerDiscreteScheduler", {}, {"timesteps": [999, 700, 300, 20]}),
        ("EulerDiscreteScheduler", SD, {"sigmas": [14.0, 5.0, 1.0, 0.2, 0.0]}),
        ("HeunDiscreteScheduler", {}, {"timesteps": [999, 700, 300, 20]}),
        ("UniPCMultistepScheduler", FLOW_UNIPC, {"sigmas": np.array([1.0, 0.7, 0.4, 0.1])}),
        ("DPMSolverSinglestepScheduler", {}, {"timesteps": [999, 700, 300, 20]}),
        ("TCDScheduler", {}, {"timesteps": [999, 759, 499, 259]}),
        ("TCDScheduler", {}, {"num_inference_steps": 4, "original_inference_steps": 25, "strength": 0.6}),
        ("FlowMatchEulerDiscreteScheduler", {}, {"sigmas": [1.0, 0.8, 0.3]}),
        ("FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.1}, {"num_inference_steps": 5}),
        ("FlowMatchEulerDiscreteScheduler", DYNAMIC, {"num_inference_steps": 4, "mu": 0.9}),
        ("FlowMatchEulerDiscreteScheduler", DYNAMIC, {"sigmas": [1.0, 0.8, 0.3], "mu": 1.15}),
        ("FlowMatchEulerDiscreteScheduler", {}, {"timesteps": [900.0, 500.0, 100.0]}),
        ("FlowMatchLCMScheduler", DYNAMIC, {"sigmas": [1.0, 0.5], "mu": 0.5}),
    ],
)
def test_timesteps_and_levels_of_ones_own(name, config, timesteps):
    require_same_walk(pair(name, config, **timesteps))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("TCDScheduler", {"eta": 0.0}),
        ("TCDScheduler", {"eta": 1.0}),
        ("LMSDiscreteScheduler", {"order": 2}),
        ("EulerDiscreteScheduler", {"s_churn": 0.0, "s_noise": 1.0}),
    ],
)
def test_options_of_a_step(name, options):
    require_same_walk(pair(name, {}, 6), **options)


@pytest.mark.parametrize("name", CLASSES)
def test_results_are_of_diffusers_kind_and_dtype(name):
    both = pair(name, CLASSES[name], 4)
    for state, output in [(torch.float16,) * 2, (torch.bfloat16,) * 2, (torch.float32, torch.float16)]:
        results = []
        for scheduler in set_timesteps(name, both, 4):
            x = initial(scheduler).to(state)
            results.append(scheduler.step(network(x, 0).to(output), scheduler.timesteps[0], x))
        assert type(results[1]) is type(results[0])
        assert {key: value.dtype for key, value in results[1].items()} == {
            key: value.dtype for key, value in results[0].items()
        }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CLASSES)
def test_half_precision_rounds_once_a_step(name, dtype, monkeypatch):
    """Against float32 on the same numbers at each step: what is kept is wide, the store alone rounds."""
    bound = {torch.float16: tolerances.STEP_FLOAT16, torch.bfloat16: tolerances.STEP_BFLOAT16}[dtype]
    theirs, mine = pair(name, CLASSES[name], 5)
    module = sys.modules[type(theirs).__module__]
    generators = [torch.Generator().manual_seed(4) for _ in range(2)]
    takes_noise = "generator" in inspect.signature(theirs.step).parameters

    def drawn_in_half(shape, generator=None, device=None, dtype=None):
        return torch.randn(shape, generator=generator, dtype=drawn.get(dtype, dtype)).float()

    drawn = {} if name.startswith("FlowMatch") else {torch.float32: dtype}  # flows draw float32, whatever the state's
    monkeypatch.setattr(module, "randn_tensor", drawn_in_half, raising=False)
    x = initial(theirs).to(dtype)
    for i, t in enumerate(theirs.timesteps):
        output = network(x.float() / (1 + x.float().abs().max()), t).to(dtype)
        options = [{"generator": generator} if takes_noise else {} for generator in generators]
        expected = theirs.step(output.float(), t, x.float(), **options[0])
        found = mine.step(output, t, x, **options[1])
        for key, value in expected.items():
            largest = max(value.abs().max(), x.float().abs().max())
            assert (found[key].float() - value).abs().max() <= bound * largest, (key, i)
        x = expected.prev_sample.to(dtype)


def test_steps_without_memory_may_come_in_any_order():
    """As pipelines ask for that set an index back, or step a part of a video twice."""
    both = pair("EulerDiscreteScheduler", {}, 6)
    for index in (3, 3, 0):
        results = []
        for scheduler in both:
            scheduler._step_index = index
            results.append(scheduler.step(noise(2), scheduler.timesteps[index], noise(3), return_dict=False))
        for theirs, mine in zip(*results, strict=True):
            assert (mine - theirs).abs().max() <= tolerances.ONE_STEP * theirs.abs().max()


def test_a_result_is_the_caller_s():
    scheduler = pair("EulerDiscreteScheduler", {}, 6)[1]
    first = scheduler.step(noise(2), scheduler.timesteps[0], noise(3))
    kept = copy.deepcopy(first)
    scheduler.step(noise(4), scheduler.timesteps[1], first.prev_sample)
    assert all(torch.equal(first[key], kept[key]) for key in kept)


def test_a_subclass_of_another_name_steps():
    class Mine(ours.HeunDiscreteScheduler):
        """A user's own."""

    mine, theirs = Mine(), diffusers.HeunDiscreteScheduler()
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(3)
    require_same_walk((theirs, mine))


def test_steps_with_memory_follow_one_another():
    scheduler = pair("UniPCMultistepScheduler", {}, 6)[1]
    scheduler.step(noise(2), scheduler.timesteps[0], noise(3))
    scheduler._step_index = 3
    with pytest.raises(
        ValueError, match=r"a run must go on with 1, got 3; call set_timesteps to begin another, or take"
    ):
        scheduler.step(noise(2), scheduler.timesteps[3], noise(3))
    scheduler = pair("LMSDiscreteScheduler", {}, 6)[1]
    scheduler.step(noise(2), scheduler.timesteps[0], noise(3))
    with pytest.raises(ValueError, match=r"a run must go on with {'order': 4}, got {'order': 2}"):
        scheduler.step(noise(2), scheduler.timesteps[1], noise(3), order=2)
    scheduler.set_timesteps(1)
    scheduler.step(noise(2), scheduler.timesteps[0], noise(3))
    with pytest.raises(ValueError, match="a run must end after its 1 steps: call set_timesteps to begin another"):
        scheduler.step(noise(2), scheduler.timesteps[0], noise(3))


REFUSED = {
    "churn": (
        "EulerDiscreteScheduler",
        {},
        {"s_churn": 0.5},
        "s_churn must be left at 0.0, got 0.5: take diffusers.Eu",
    ),
    "tokens": (
        "FlowMatchEulerDiscreteScheduler",
        {},
        {"per_token_timesteps": torch.ones(2, 3)},
        "per_token_timesteps must be left at None, got tensor",
    ),
    "order": ("LMSDiscreteScheduler", {}, {"order": 5}, "order must be between 1 and 4, got 5; or take diffusers.LMS"),
    "eta": ("TCDScheduler", {}, {"eta": 1.5}, "eta must be between 0 and 1, got 1.5; or take diffusers.TCD"),
    "prk": (
        "PNDMScheduler",
        {"skip_prk_steps": False},
        {},
        "skip_prk_steps must be True, since .*; or take diffusers.P",
    ),
    "thresholding": (
        "UniPCMultistepScheduler",
        {"thresholding": True},
        {},
        "thresholding must be False, got True; or take diffusers.UniPC",
    ),
    "log-linear": (
        "EulerDiscreteScheduler",
        {"interpolation_type": "log_linear"},
        {},
        "interpolation_type must be 'linear', got 'log_linear': .*; or take diffusers.Euler",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_rows_cannot_do_is_refused(case):
    name, config, options, message = REFUSED[case]
    scheduler = getattr(ours, name)(**config)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=message):
        scheduler.step(noise(2), scheduler.timesteps[0], noise(3), **options)


@pytest.mark.parametrize(
    ("x", "output", "reason"),
    [
        (torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 3), "tensors are torch.float64, not float32"),
        (torch.ones(2, 3), torch.ones(1, 3), r"sample has shape \(2, 3\), model_output \(1, 3\)"),
        (torch.ones(2, 3, requires_grad=True), torch.ones(2, 3), "a gradient is asked for"),
    ],
    ids=["float64", "broadcast", "gradient"],
)
def test_tensors_that_are_refused(x, output, reason):
    scheduler = ours.EulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=f"{reason}.*; take diffusers.EulerDiscreteScheduler"):
        scheduler.step(output, scheduler.timesteps[0], x)


def test_calls_that_are_wrong():
    scheduler = ours.EulerDiscreteScheduler()
    with pytest.raises(ValueError, match="set_timesteps must be called before step, got num_inference_steps None"):
        scheduler.step(noise(2), 999.0, noise(3))
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="timestep must be one of the scheduler's timesteps, got 0, a whole number"):
        scheduler.step(noise(2), 0, noise(3))
    with pytest.raises(TypeError, match="unexpected keyword argument 'noise'"):
        scheduler.step(noise(2), scheduler.timesteps[0], noise(3), noise=None)
    scheduler.sigmas[-1] = 0.01
    with pytest.raises(ValueError, match="sigmas must be those of set_timesteps, got others"):
        scheduler.step(noise(2), scheduler.timesteps[0], noise(3))
    heun = pair("HeunDiscreteScheduler", {}, 4, begin=3)[1]
    with pytest.raises(ValueError, match="a run must begin at a multiple of order = 2 evaluations, got 3"):
        heun.step(noise(2), heun.timesteps[3], noise(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_kernel_gives_what_the_core_gives_with_three_registers(dtype):
    pytest.importorskip("triton", reason="Triton is not installed: it comes for x86-64 Linux")
    table = pair("LMSDiscreteScheduler", {}, 6)[1]
    table.step(noise(0), table.timesteps[0], noise(1))
    row, device = table._run.rows[4], "cuda" if torch.cuda.is_available() else "cpu"
    x, output, *registers = (noise(seed) for seed in range(5))
    on_core = [one.clone() for one in registers]
    expected = step_with(row, x.to(dtype), output.to(dtype), on_core)
    module = sys.modules[step_with.__module__]
    on_device = [one.to(device, copy=True) for one in registers]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_on_cpu", module._by_kernel)
        found = step_with(row, x.to(device, dtype), output.to(device, dtype), on_device)
    for mine, theirs in zip([found, *on_device], [expected, *on_core], strict=True):
        assert torch.equal(mine.cpu(), theirs)
