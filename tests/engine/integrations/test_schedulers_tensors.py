"""Which tensors our schedulers step, and what they leave to diffusers, saying so once."""

import logging

import pytest
import tolerances
import torch

from stepfuse.integrations import diffusers as ours
from stepfuse.integrations.diffusers.scheduler_rows import dpm_row
from stepfuse.integrations.diffusers.torch_step import _by_kernel, _on_cpu, warn_once

diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

ROUNDING = {torch.float16: tolerances.STEP_FLOAT16, torch.bfloat16: tolerances.STEP_BFLOAT16}
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")

NAMES = ("DDIMScheduler", "DDPMScheduler", "LCMScheduler", "DPMSolverMultistepScheduler")


@pytest.fixture
def logged(caplog):
    """The warnings logged so far, none of them suppressed as a repetition."""
    warn_once.cache_clear()
    caplog.set_level(logging.WARNING, logger="stepfuse")
    yield lambda: [record.getMessage() for record in caplog.records if record.name.startswith("stepfuse")]
    warn_once.cache_clear()


def tensors(shape=(2, 3, 4, 5), dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(2)]


def first_step(scheduler, prediction, x, steps=4, **options):
    scheduler.set_timesteps(steps)
    return scheduler.step(prediction, scheduler.timesteps[0], x, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_rounds_once(name, dtype, logged):
    """Against float32 on the same numbers: noise, coefficients and sums are wide, the store alone rounds."""
    x, prediction = tensors(dtype=dtype)
    found = first_step(getattr(ours, name)(), prediction, x, generator=torch.manual_seed(0))
    noise = torch.randn(x.shape, generator=torch.manual_seed(0), dtype=dtype).float()  # as the network's output
    expected = first_step_with_noise(getattr(diffusers, name)(), prediction.float(), x.float(), noise)
    for key, value in expected.items():
        assert found[key].dtype == dtype
        assert (found[key].float() - value).abs().max() <= ROUNDING[dtype] * value.abs().max()
    assert logged() == []


def first_step_with_noise(scheduler, prediction, x, noise):
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "randn_tensor", lambda *_args, **_options: noise)
        return first_step(scheduler, prediction, x)


@pytest.mark.parametrize(
    ("state", "output", "wider"),
    [
        (torch.float32, torch.float16, torch.float32),
        (torch.float16, torch.float32, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32),
    ],
)
@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_two_dtypes_give_the_wider(name, state, output, wider):
    x, prediction = tensors()
    x, prediction = x.to(state), prediction.to(output)
    found = first_step(getattr(ours, name)(), prediction, x).prev_sample
    expected = first_step(getattr(diffusers, name)(), prediction.float(), x.float()).prev_sample
    assert found.dtype == wider
    assert (found - expected).abs().max() <= tolerances.ONE_STEP * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_of_the_way_back(dtype, logged):
    x, prediction = tensors(dtype=dtype)
    found = first_step(ours.DDIMInverseScheduler(), prediction, x).prev_sample
    expected = first_step(diffusers.DDIMInverseScheduler(), prediction.float(), x.float()).prev_sample
    assert found.dtype == dtype
    assert (found.float() - expected).abs().max() <= ROUNDING[dtype] * expected.abs().max()
    assert logged() == []


def test_the_clean_sample_predicted_from_a_clean_sample_is_left_to_diffusers(logged):
    """There is no noise to find in it: diffusers' result is not finite."""
    x, prediction = tensors()
    first_step(ours.DDIMInverseScheduler(prediction_type="sample"), prediction, x)
    assert "DDIMInverseScheduler" in logged()[0]


@pytest.mark.parametrize("shape", [(), (1,), (7,), (1, 3), (2, 0, 4), (1, 4, 3, 5, 2)], ids=str)
def test_any_shape(shape):
    x, prediction = tensors(shape)
    found = first_step(ours.DDIMScheduler(), prediction, x)
    expected = first_step(diffusers.DDIMScheduler(), prediction, x)
    assert found.prev_sample.shape == shape
    assert torch.allclose(found.prev_sample, expected.prev_sample, rtol=0, atol=tolerances.ONE_STEP)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.permute(3, 0, 1, 2),
        lambda x: x[:, ::2],
        lambda x: x[:1].expand(4, -1, -1, -1),
    ],
    ids=["channels last", "permuted", "every other", "expanded"],
)
@pytest.mark.parametrize("name", NAMES)
def test_strides(name, view):
    x, prediction = map(view, tensors())
    kept = x.clone(), prediction.clone()
    found = first_step(getattr(ours, name)(), prediction, x, generator=torch.manual_seed(0)).prev_sample
    expected = first_step(getattr(diffusers, name)(), prediction, x, generator=torch.manual_seed(0)).prev_sample
    assert torch.allclose(found, expected, rtol=0, atol=tolerances.ONE_STEP)
    assert torch.equal(x, kept[0])
    assert torch.equal(prediction, kept[1])


def test_what_a_step_returned_is_left_alone():
    """The history of a step is a new tensor: those of earlier steps stay as they were."""
    scheduler = ours.DPMSolverMultistepScheduler()
    scheduler.set_timesteps(6)
    x, prediction = tensors()
    estimates, copies = [], []
    for t in scheduler.timesteps[:4]:
        x = scheduler.step(prediction, t, x).prev_sample
        estimates.append(scheduler.model_outputs[-1])
        copies.append(estimates[-1].clone())
    assert scheduler.model_outputs[0] is estimates[-2]
    for estimate, copy in zip(estimates, copies, strict=True):
        assert torch.equal(estimate, copy)


UNCOVERED = {
    "ddim-threshold": ("DDIMScheduler", {"thresholding": True}, {}, "thresholding=True"),
    "ddpm-threshold": ("DDPMScheduler", {"thresholding": True}, {}, "thresholding=True"),
    "lcm-threshold": ("LCMScheduler", {"thresholding": True}, {}, "thresholding=True"),
    "dpm-threshold": ("DPMSolverMultistepScheduler", {"thresholding": True}, {}, "thresholding=True"),
    "dpm-flow-of-epsilon": (
        "DPMSolverMultistepScheduler",
        {"use_flow_sigmas": True},
        {},
        "prediction_type='epsilon', use_flow_sigmas=True",
    ),
    "ddpm-learned": ("DDPMScheduler", {"variance_type": "fixed_large_log"}, {}, "variance_type='fixed_large_log'"),
    "ddim-eta": ("DDIMScheduler", {"set_alpha_to_one": False}, {"eta": 1.01}, "eta=1.01"),
    "ddim-eta-below-0": ("DDIMScheduler", {}, {"eta": -0.5}, "eta=-0.5"),
    "ddim-zero-snr": (
        "DDIMScheduler",
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        {},
        "a coefficient is not finite, as where alphas_cumprod is 0 with prediction_type='epsilon'",
    ),
}


@pytest.mark.parametrize("case", UNCOVERED)
def test_settings_left_to_diffusers(case, logged):
    name, config, options, reason = UNCOVERED[case]
    x, prediction = tensors()
    results = []
    for library in (diffusers, ours):
        scheduler, generator = getattr(library, name)(**config), torch.manual_seed(0)
        results.append(first_step(scheduler, prediction, x, generator=generator, **options))
    for key, value in results[0].items():
        assert torch.equal(results[1][key].nan_to_num(7), value.nan_to_num(7))
    first_step(getattr(ours, name)(**config), prediction, x, **options)
    assert logged() == [f"{name} steps by diffusers' own code: {reason}"]


def test_learned_variance_of_ddpm(logged):
    x, prediction = tensors()
    both = torch.cat([prediction, 0.1 * prediction], dim=1)
    results = [
        first_step(library.DDPMScheduler(variance_type="learned_range"), both, x, generator=torch.manual_seed(0))
        for library in (diffusers, ours)
    ]
    assert torch.equal(results[0].prev_sample, results[1].prev_sample)
    assert logged() == ["DDPMScheduler steps by diffusers' own code: variance_type='learned_range'"]


@pytest.mark.parametrize("name", NAMES)
def test_unknown_prediction_type(name, logged):
    x, prediction = tensors()
    with pytest.raises(ValueError, match="prediction_type given as noise must be one of"):
        first_step(getattr(ours, name)(prediction_type="noise"), prediction, x)
    assert "prediction_type='noise'" in logged()[0]


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_gradients(name, logged):
    x, prediction = tensors()
    results = []
    for library in (diffusers, ours):
        state = x.clone().requires_grad_()
        first_step(getattr(library, name)(), 0.5 * state + prediction, state).prev_sample.sum().backward()
        results.append(state.grad)
    assert torch.equal(*results)
    assert logged() == [
        f"{name} steps by diffusers' own code: a gradient is asked for (torch.no_grad() is not in force)"
    ]
    with torch.no_grad():
        stepped = first_step(getattr(ours, name)(), prediction, x.requires_grad_()).prev_sample
    assert not stepped.requires_grad
    assert len(logged()) == 1


@pytest.mark.parametrize(
    ("x", "prediction", "reason"),
    [
        (torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 3), "tensors are torch.float64, not float32, float16 or"),
        (torch.ones(2, 3), torch.ones(1, 3), r"sample has shape (2, 3), model_output (1, 3)"),
        (torch.ones(2, 3, device="meta"), torch.ones(2, 3, device="meta"), "tensors are on meta, not on the CPU or a"),
    ],
    ids=["float64", "broadcast", "meta"],
)
def test_tensors_left_to_diffusers(x, prediction, reason, logged):
    found = first_step(ours.DDIMScheduler(), prediction, x).prev_sample
    expected = first_step(diffusers.DDIMScheduler(), prediction, x).prev_sample
    assert (found.shape, found.dtype, found.device) == (expected.shape, expected.dtype, expected.device)
    if x.device.type == "cpu":
        assert torch.equal(found, expected)
    assert f"own code: {reason}" in logged()[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_kernel_gives_what_the_core_gives(dtype):
    pytest.importorskip("triton", reason="Triton is not installed: it comes for x86-64 Linux")
    x, prediction = tensors(dtype=dtype)
    before, z = tensors(dtype=dtype)
    row = dpm_row("sde-dpmsolver++", "midpoint", "v_prediction", 4.0, 3.0, (5.0,))
    device, results = "cuda" if torch.cuda.is_available() else "cpu", []
    for step, at in ((_on_cpu, "cpu"), (_by_kernel, device)):
        kept = before.to(at, copy=True)
        following = step(row, x.to(at), prediction.to(at), [kept], z.to(at))
        results.append((following.cpu(), kept.cpu()))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(found, expected)
