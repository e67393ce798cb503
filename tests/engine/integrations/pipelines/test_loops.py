"""Loops of any pipeline: other ways to call a scheduler than diffusers' own pipelines have, against diffusers."""

import copy
import logging

import pytest
import tolerances

diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

import torch  # noqa: E402

from stepfuse.integrations.diffusers import compile  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning", "ignore::FutureWarning")

SHAPE = (2, 3, 4, 5)
FLOW_SIGMAS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
SCHEDULERS = {
    "DDIM": diffusers.DDIMScheduler(clip_sample=False),
    "DPM": diffusers.DPMSolverMultistepScheduler(),
    "Euler": diffusers.EulerDiscreteScheduler(),
    "Heun": diffusers.HeunDiscreteScheduler(),
    "UniPC": diffusers.UniPCMultistepScheduler(**FLOW_SIGMAS),
    "flow": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "stochastic flow": diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
}


def prediction(scheduler, x, t):
    """In place of a network."""
    scaled = scheduler.scale_model_input(sample=x, timestep=t) if hasattr(scheduler, "scale_model_input") else x
    return torch.tanh(0.7 * scaled + 0.001 * t) - 0.1


def stepped(scheduler, x, t):
    return scheduler.step(prediction(scheduler, x, t), t, x, return_dict=False)[0]


def plain(scheduler, x):
    for t in scheduler.timesteps:
        x = stepped(scheduler, x, t)
    return x


def copied(scheduler, x):
    """Two states, each with a scheduler, as of pictures and sound."""
    other, y = copy.deepcopy(scheduler), -x
    for t in scheduler.timesteps:
        x, y = stepped(scheduler, x, t), stepped(other, y, t)
    return torch.cat([x, y])


def begun_anew(scheduler, x):
    for t in scheduler.timesteps[: 2 * scheduler.order]:
        x = stepped(scheduler, x, t)
    scheduler.set_timesteps(4)
    return plain(scheduler, x)


def transposed(scheduler, x):
    """States and predictions that do not lie in order."""
    for t in scheduler.timesteps:
        e = prediction(scheduler, x, t)
        e, y = (one.transpose(1, 3).contiguous().transpose(1, 3) for one in (e, x))
        x = scheduler.step(e, t, y, return_dict=False)[0]
    return x


def by_keywords(scheduler, x):
    for t in scheduler.timesteps:
        e = prediction(scheduler, x, t)
        x = scheduler.step(model_output=e, timestep=t, sample=x).prev_sample
    return x


def in_double(scheduler, x):
    return plain(scheduler, x.double()).float()


def sliced(scheduler, x):
    """The first channel is kept as it is."""
    for t in scheduler.timesteps:
        e = prediction(scheduler, x, t)
        x = torch.cat([x[:, :1], scheduler.step(e[:, 1:], t, x[:, 1:], return_dict=False)[0]], dim=1)
    return x


def with_its_state_put_back(scheduler, x):
    """Two states that share one scheduler, whose attributes are put back for each."""
    states = [copy.deepcopy(scheduler.__dict__)] * 2
    parts = [x, -x]
    for t in scheduler.timesteps:
        for i in range(2):
            scheduler.__dict__.update(states[i])
            parts[i] = stepped(scheduler, parts[i], t)
            states[i] = copy.deepcopy(scheduler.__dict__)
    return torch.cat(parts)


def from_the_middle(scheduler, x):
    begin = 2 * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    for t in scheduler.timesteps[begin:]:
        x = stepped(scheduler, x, t)
    return x


LOOPS = (
    plain,
    copied,
    begun_anew,
    transposed,
    by_keywords,
    in_double,
    sliced,
    with_its_state_put_back,
    from_the_middle,
)


class Looping(diffusers.DiffusionPipeline):
    """A pipeline without a network whose loop is an argument."""

    def __init__(self, scheduler):
        super().__init__()
        self.register_modules(scheduler=scheduler)

    def __call__(self, loop, *, shape=SHAPE):
        torch.manual_seed(0)
        self.scheduler.set_timesteps(5)
        return loop(self.scheduler, torch.randn(shape))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_states_are_those_of_diffusers(name, loop):
    pipe = Looping(copy.deepcopy(SCHEDULERS[name]))
    want = pipe(loop)
    got = compile(pipe)(loop)
    assert (got - want).abs().max() <= tolerances.COMPILED * max(1.0, want.abs().max().item())
    assert not [key for key in vars(pipe.scheduler) if key in ("remedy", "leaves_runs", "_run", "_is_left")]


@pytest.mark.parametrize("shape", [(2, 7), (2, 3, 5), (1, 2, 3, 4, 5), (1, 2, 1, 3, 2, 2)])
def test_states_may_have_any_rank(shape):
    pipe = Looping(SCHEDULERS["UniPC"])
    torch.testing.assert_close(compile(pipe)(plain, shape=shape), pipe(plain, shape=shape), rtol=2e-5, atol=2e-5)


def test_a_run_that_no_table_holds_is_diffusers_own(caplog):
    """From its first step on, with the reason; the next run is looked at anew."""
    caplog.set_level(logging.WARNING, logger="stepfuse")
    pipe = Looping(diffusers.EulerDiscreteScheduler(final_sigmas_type="sigma_min", interpolation_type="log_linear"))
    compiled = compile(pipe)
    torch.testing.assert_close(compiled(plain), pipe(plain), rtol=0, atol=0)
    assert "EulerDiscreteScheduler steps by diffusers' own code: " in caplog.text

    def churned(scheduler, x):
        for t in scheduler.timesteps:
            e = prediction(scheduler, x, t)
            x = scheduler.step(e, t, x, s_churn=0.5, return_dict=False)[0]
        return x

    compiled.scheduler = diffusers.EulerDiscreteScheduler()
    torch.testing.assert_close(compiled(churned), pipe(churned), rtol=0, atol=0)


def test_what_changes_in_the_middle_of_a_run_that_builds_on_it_is_refused():
    def jumping(scheduler, x):
        for t in scheduler.timesteps[:2]:
            x = stepped(scheduler, x, t)
        scheduler._step_index = 0
        return stepped(scheduler, x, scheduler.timesteps[0])

    compiled = compile(Looping(SCHEDULERS["UniPC"]))
    with pytest.raises(ValueError, match=r"a run must go on with 2, got 0; .* call pipe\.original"):
        compiled(jumping)
