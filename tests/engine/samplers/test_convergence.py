"""More steps come closer to the exact solution, for normal data, whose probability flow is known in closed form."""

import numpy as np
import pytest

import stepfuse as sf
from stepfuse.kernels.reference import two_line_step_ref
from stepfuse.samplers.table import COLUMNS, SECOND_LINE

MEAN, SPREAD = 0.3, 0.5
NOISE = np.linspace(-2, 2, 5, dtype=np.float32)[None]
SPACINGS = ("leading", "trailing", "linspace")
COUNTS = (10, 30, 90, 150, 300, 400, 501, 600, 750, 999)


def exact(schedule):
    """The noise prediction that is right for data N(MEAN, SPREAD²), or on a flow the velocity."""

    def predict(x, t, cond):
        signal, noise = (one[:, None] for one in schedule.levels(t.astype(np.float64)))
        surplus = (x - signal * MEAN) / ((signal * SPREAD) ** 2 + noise**2)
        eps = noise * surplus
        return eps - (MEAN + signal * SPREAD**2 * surplus) if schedule.is_flow else eps

    return predict


def errors(sampler, schedule, counts=COUNTS, **options):
    """Distance from where the probability flow leads from the first state: x - E[x] scales as its deviation."""
    found = []
    kind = "flow" if schedule.is_flow else "epsilon"
    with sf.Engine.from_callable(exact(schedule), shape=(5,), schedule=schedule, prediction_type=kind) as engine:
        for steps in counts:
            table = engine.table(sampler=sampler, steps=steps, **options)
            signal, noise = table.levels[0]
            first = table.init_scale * NOISE.astype(np.float64)
            want = MEAN + SPREAD * (first - signal * MEAN) / np.hypot(signal * SPREAD, noise)
            found.append(np.abs(engine.sample(1, table=table, noise=NOISE, seed=0) - want).max())
    return np.array(found)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_the_error_of_a_first_order_sampler_falls_as_steps_are_added(sampler, spacing):
    for schedule in (sf.NoiseSchedule.linear(), sf.NoiseSchedule.scaled_linear()):
        found = errors(sampler, schedule, spacing=spacing)
        assert (found[1:] <= 1.05 * found[:-1]).all(), found
        assert found[-1] < 0.01


@pytest.mark.parametrize("options", [{"spacing": one} for one in SPACINGS] + [{"karras": True}], ids=str)
@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "unipc", "kdpm2"])
def test_a_second_order_sampler_stays_near_the_solution_once_it_is_there(sampler, options):
    """The schedule's least noise, at which its last step begins, leaves 5e-4 of the data's deviation."""
    found = errors(sampler, sf.NoiseSchedule.linear(), (10, 100, 300, 600, 999), **options)
    assert found[0] > 5 * found[1]
    assert found[1:].max() < 0.005


EVEN = sf.NoiseSchedule.from_alphas_cumprod(1 / (1 + np.exp(-np.linspace(4, -4, 961))))  # timesteps even in log-SNR


def solution(x, begin, end):
    """Where the probability flow leads from the state x, from one pair of signal and noise to another."""
    surplus = (x - begin[0] * MEAN) / np.hypot(begin[0] * SPREAD, begin[1])
    return end[0] * MEAN + np.hypot(end[0] * SPREAD, end[1]) * surplus


def exactly(sampler, schedule, **options):
    """A table's rows before they are rounded to float32, which hides errors of high order, and its levels."""
    made = []
    with pytest.MonkeyPatch.context() as patched:
        from_columns = sf.StepTable.from_columns
        patched.setattr(
            sf.StepTable, "from_columns", lambda *args, **rest: made.append(args) or from_columns(*args, **rest)
        )
        table = sampler(schedule, **options)
    [[columns]] = made
    neutral = {"s": 1.0, "lo": -np.inf, "hi": np.inf}
    names = [columns.get(name, neutral.get(name, 0.0)) for name in COLUMNS + SECOND_LINE]
    return np.stack([np.broadcast_to(column, len(table)) for column in names], axis=1), table.levels


def rate(sampler, *, counts=(40, 80), started=0, at_end=False, **options):
    """By how much halving the steps' length divides the error, over ``EVEN``, in float64.

    Args:
        started: How many of the first steps, which lack estimates, are put on the solution.
        at_end: Whether the error is the result's: that of a state before its correction is larger. Otherwise it is the
            largest on the way, since that of the result passes through 0 at some step lengths.
    """
    found, end = [], np.ravel(EVEN.levels(np.array([0.0])))
    for steps in counts:
        timesteps = np.arange(960, 0, -960 // steps)
        options["final_alpha_cumprod"] = EVEN.alphas_cumprod[0]
        rows, levels = exactly(sampler, EVEN, timesteps=timesteps, **options)
        on_the_way = distances(rows, EVEN, np.append(levels[:-1], [end], axis=0), started)
        found.append(on_the_way[-1] if at_end else max(on_the_way))
    return found[0] / found[1]


def rate_in_noise(sampler, *, started, counts=(32, 64), **options):
    """The same over ``RISING``, down to a clean sample."""
    found = []
    for steps in counts:
        rows, levels = exactly(sampler, RISING, timesteps=np.arange(959, -1, -960 // steps), **options)
        found.append(max(distances(rows, RISING, levels, started)))
    return found[0] / found[1]


def distances(rows, schedule, levels, started):
    """From the solution, after each step of a run."""
    network, first, h, h2, h3 = exact(schedule), NOISE.astype(np.float64), None, None, None
    x, found = first, []
    for i, row in enumerate(rows):
        x, h, _, h2, h3 = two_line_step_ref(x, network(row[1] * x, row[:1], None), row, None, h, None, h2, h3)
        right = solution(first, levels[0], levels[i + 1])
        x = right if i < started else x
        found.append(np.abs(x - right).max())
    return found


def of_order(order):
    """What a rate must be: an error of this order, within 15 %."""
    return pytest.approx(2.0**order, rel=0.15)


BOTH_ESTIMATES = pytest.mark.parametrize("predict_x0", [True, False], ids=["x0", "noise"])


@BOTH_ESTIMATES
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_is_of_its_order_and_of_one_more_corrected(order, predict_x0):
    """Zhao et al. (2023): UniC adds one to the order of the predictor."""
    options = {"order": order, "predict_x0": predict_x0, "lower_order_final": False, "started": order - 1}
    assert rate(sf.samplers.unipc, disable_corrector=range(80), **options) == of_order(order)
    for solver_type in ("bh1", "bh2"):
        assert rate(sf.samplers.unipc, solver_type=solver_type, **options) == of_order(order + 1)


@BOTH_ESTIMATES
@pytest.mark.parametrize(("order", "solver_type"), [(1, "heun"), (2, "midpoint"), (2, "heun"), (3, "heun")])
def test_dpm_solver_is_of_its_order_but_for_the_third(order, solver_type, predict_x0):
    """Which has half the weight of the second derivative, here and in diffusers: an error of second order is left."""
    options = {"order": order, "solver_type": solver_type, "predict_x0": predict_x0, "lower_order_final": False}
    found = rate(sf.samplers.dpmpp_2m, counts=(80, 160), started=order - 1, **options)
    assert found == of_order(min(order, 2))


def test_a_parabola_on_the_sde_has_an_error_of_second_order():
    """Without noise: k-diffusion's weights, too, take half of the second derivative."""
    assert rate(sf.samplers.dpmpp_3m_sde, counts=(80, 160), started=2, eta=0.0) == of_order(2)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_is_of_its_order(order):
    assert rate(sf.samplers.deis, order=order, lower_order_final=False, started=order - 1) == of_order(order)


@BOTH_ESTIMATES
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_single_step_is_of_its_order(order, solver_type, predict_x0):
    options = {"order": order, "solver_type": solver_type, "predict_x0": predict_x0}
    assert rate(sf.samplers.dpmpp_2s, counts=(48, 96), at_end=True, **options) == of_order(order)


RISING = sf.NoiseSchedule.from_alphas_cumprod(1 / (1 + np.linspace(0, 1, 961)[1:] ** 2))  # timesteps even in noise


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("sampler", [sf.samplers.lms, sf.samplers.ipndm], ids=["lms", "ipndm"])
def test_a_linear_multistep_method_is_of_its_order(sampler, order):
    assert rate_in_noise(sampler, order=order, started=order - 1) == of_order(order)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_is_lms_where_the_noise_falls_evenly(order):
    """Its weights are of the state over its signal, those of ``lms`` of the state."""
    timesteps = np.arange(959, -1, -30)
    ipndm, lms = (one(RISING, timesteps=timesteps, order=order) for one in (sf.samplers.ipndm, sf.samplers.lms))
    for name in ("q_e", "q_h", "q_h2", "q_h3")[:order]:
        np.testing.assert_allclose(ipndm[name], ipndm.levels[1:, 0] * lms[name], rtol=1e-5)


def test_adams_bashforth_is_of_fourth_order_on_even_steps_and_of_second_on_others():
    """Its weights take a step over noise by signal for as long as those before it."""
    for sampler in (sf.samplers.plms, sf.samplers.ipndm):
        assert rate_in_noise(sampler, started=3) == of_order(4)
        assert rate(sampler, started=3) == of_order(2)


def test_plms_is_of_second_order_as_its_first_step_is():
    for found in (rate(sf.samplers.plms), rate_in_noise(sf.samplers.plms, started=0)):
        assert found == of_order(2)


@BOTH_ESTIMATES
@pytest.mark.parametrize(
    ("predictor", "corrector", "counts"),
    [(1, 1, (40, 80)), (1, 2, (40, 80)), (2, 2, (80, 160)), (2, 3, (40, 80)), (3, 3, (240, 480)), (3, 4, (40, 80))],
)
def test_sa_solver_is_of_its_corrector_s_order(predictor, corrector, counts, predict_x0):
    """Without noise, where the exact solution is known; the corrector may be one order above the predictor."""
    options = {"predictor_order": predictor, "corrector_order": corrector, "predict_x0": predict_x0}
    started = max(predictor, corrector - 1) - 1
    found = rate(sf.samplers.sa_solver, counts=counts, started=started, tau=0.0, lower_order_final=False, **options)
    assert found == of_order(corrector)


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("dpmpp_2m_sde", {}),
        ("dpmpp_3m_sde", {"eta": 0.5}),
        ("dpmpp_sde", {}),
        ("sa_solver", {}),
        ("sa_solver", {"predict_x0": False, "tau_interval": (0, 999)}),
    ],
)
def test_samples_of_an_sde_are_spread_as_the_data(sampler, options):
    """The noise of a step makes up for what the drift takes, in a mean and a deviation known to a hundredth."""
    schedule = sf.NoiseSchedule.linear()
    with sf.Engine.from_callable(exact(schedule), shape=(40_000,), schedule=schedule) as engine:
        [values] = engine.sample(sampler=sampler, steps=60, karras=True, seed=3, **options)
    assert values.mean() == pytest.approx(MEAN, abs=0.01)
    assert values.std() == pytest.approx(SPREAD, abs=0.01)


def test_a_flow_converges():
    found = errors("euler", sf.NoiseSchedule.flow(3.0))
    assert (np.diff(found) < 0).all()


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_a_fixed_stride_is_diffusers_and_not_right(spacing):
    schedule = sf.NoiseSchedule.linear()
    [wrong] = errors("ddim", schedule, [600], spacing=spacing, fixed_stride=True)
    [right] = errors("ddim", schedule, [600], spacing=spacing)
    assert wrong > 30 * right


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("options", [{}, {"steps_offset": 1}], ids=str)
def test_ddim_leads_to_where_the_next_step_begins_and_ends_clean(spacing, options):
    """With the clean sample predicted, a step's result is the mix of x0 and noise that the next one starts from."""
    schedule = sf.NoiseSchedule.linear()
    for steps in (3, 7, 150, 600, 999, 1000):
        table = sf.samplers.ddim(schedule, steps, spacing=spacing, prediction_type="sample", **options)
        signal, noise = table.levels.T
        np.testing.assert_allclose(table["q_x"], noise[1:] / noise[:-1], rtol=1e-6)
        on_x0 = table["q_x"] * signal[:-1] + table["q_d"] + table["q_e"]
        np.testing.assert_allclose(on_x0, signal[1:], rtol=1e-5)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_inverse_of_a_step_leads_back_to_where_it_began(spacing):
    schedule = sf.NoiseSchedule.linear()
    for steps in (7, 600):
        for fixed_stride in (False, True):
            options = {"spacing": spacing, "fixed_stride": fixed_stride}
            forward = sf.samplers.ddim(schedule, steps, **options)
            back = sf.samplers.ddim_inverse(schedule, steps, **options)
            np.testing.assert_allclose(back["q_x"][::-1] * (forward["q_x"] + forward["q_d"] * forward["p_x"]), 1, 1e-5)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "euler", "heun", "dpmpp_2m", "plms", "unipc"])
def test_leading_timesteps_that_begin_late_are_warned_of(sampler, recwarn):
    schedule = sf.NoiseSchedule.scaled_linear()
    make = getattr(sf.samplers, sampler)
    for steps in (1, 5, 30, 50, 60, 99, 249, 499, 999):
        make(schedule, steps, spacing="leading")
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"begins at timestep (599|600) of 999, where 0\.4 of the sample is left"):
        make(schedule, 600, spacing="leading")
