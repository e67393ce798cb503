"""Which noise levels a run visits: against diffusers' schedulers over whole runs, and what is refused."""

from inspect import signature

import numpy as np
import peers
import pytest
import support

import stepfuse as sf
from stepfuse.requests.partial_run import begin_late
from stepfuse.requests.resolution import compile_table
from stepfuse.samplers import AYS, SAMPLERS
from stepfuse.samplers.beta_quantile import beta_quantile

needs_diffusers = pytest.mark.skipif(not support.installed("diffusers"), reason="diffusers needs Python 3.11")
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning:diffusers")

SCALED, FLOW = sf.NoiseSchedule.scaled_linear(), sf.NoiseSchedule.flow(3.0)
STEPS = (1, 2, 3, 5, 7, 10, 25, 50)
V = {"prediction_type": "v_prediction"}
CASES = {
    "euler": ({"levels": "exponential"}, {"levels": "beta"}),
    "heun": ({"levels": "exponential"}, {"levels": "beta"}),
    "dpmpp_2m": ({"levels": "exponential"}, {"levels": "beta"}, {"levels": "lu"}),
    "deis": ({"levels": "exponential"}, {"levels": "beta", "order": 3}),
    "unipc": ({"levels": "exponential", "order": 3}, {"levels": "beta"}),
}
MORE = [
    ("euler", {"levels": "karras"}, "linear"),
    ("euler", {"levels": "beta", "spacing": "trailing", **V}, "zero-snr"),
    ("euler", {"levels": "exponential", "spacing": "leading", "steps_offset": 1}, "linear"),
    ("euler", {"karras": True, "sigma_min": 0.1, "sigma_max": 10.0}, "scaled"),
    ("euler", {"levels": "beta", "sigma_min": 0.1}, "scaled"),
    ("euler", {"levels": "exponential", "sigma_max": 12.0, "guidance_scale": 3.0}, "scaled"),
    ("unipc", {"karras": True, "sigma_min": 0.1, "sigma_max": 10.0}, "scaled"),
    ("unipc", {"levels": "beta", **V}, "zero-snr"),
    ("heun", {"levels": "beta", "spacing": "trailing", **V}, "linear"),
    ("dpmpp_2m", {"levels": "lu", "order": 1}, "linear"),
    ("dpmpp_2m", {"levels": "beta", "prediction_type": "sample"}, "linear"),
    ("dpmpp_2m", {"levels": "beta", **V}, "cosine"),
    ("euler", {"levels": "karras"}, "shift-1"),
    ("euler", {"levels": "exponential"}, "shift-3"),
    ("euler", {"levels": "beta"}, "shift-3"),
    ("euler", {"levels": "beta", "shift_terminal": 0.1}, "shift-3"),
    ("euler", {"shift_terminal": 0.1}, "shift-3"),
    ("unipc", {"shift_terminal": 0.1}, "shift-3"),
    ("lcm", {"karras": True, "shift_terminal": 0.1}, "shift-3"),
    ("dpmpp_2m_sde", {"levels": "lu"}, "scaled"),
    ("sa_solver", {"levels": "exponential"}, "scaled"),
    ("lms", {"levels": "exponential"}, "scaled"),
    ("lms", {"levels": "beta", **V}, "linear"),
    ("kdpm2", {"levels": "exponential"}, "scaled"),
    ("kdpm2_ancestral", {"levels": "beta", **V}, "linear"),
    ("dpmpp_2s", {"levels": "beta", "order": 3}, "linear"),
    ("dpmpp_sde", {"levels": "exponential", "spacing": "trailing"}, "linear"),
]


def comparable(sampler, options, steps):
    """Whether diffusers' run is defined."""
    if steps == 1 and sampler in ("deis", "sa_solver"):
        return False  # its only step leads from the noisiest level to itself
    return not (steps == 1 and "shift_terminal" in options)  # it divides by 0


def ours(schedule, table):
    with peers.engine(schedule, table.options.get("prediction_type", "epsilon")) as engine:
        return engine.sample(peers.BATCH, cond=1.0, table=table, noise=peers.NOISE, seed=peers.SEED)


def same(got, want, sampler):
    assert np.abs(got - want).max() < peers.TOLERANCES[sampler] * np.abs(want).max()


@needs_diffusers
@pytest.mark.parametrize(
    ("sampler", "options", "schedule", "steps"),
    [
        pytest.param(
            sampler, options, schedule, steps, id=f"{sampler}-{'-'.join(map(str, options.values()))}-{schedule}-{steps}"
        )
        for sampler, options, schedule, counts in [
            *((sampler, options, "scaled", STEPS) for sampler, cases in CASES.items() for options in cases),
            *((*case, (1, 2, 10)) for case in MORE),
        ]
        for steps in counts
        if comparable(sampler, options, steps)
    ],
)
def test_levels_are_diffusers(sampler, options, schedule, steps, monkeypatch):
    levels = peers.noise_schedule(schedule)
    if sampler in ("deis", "sa_solver"):
        options = {**options, "final_alpha_cumprod": levels.alphas_cumprod[0]}
    scheduler = peers.scheduler(sampler, schedule, options, num_inference_steps=steps)
    want = peers.run(scheduler, monkeypatch, options.get("guidance_scale", 1.0))
    table = SAMPLERS[sampler](levels, steps, **options)
    assert np.abs(table.rows[np.isfinite(table.rows)]).max() < 1e6
    same(ours(levels, table), want, sampler)


@needs_diffusers
@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m", "unipc", "heun"])
def test_own_levels_are_stepped_as_diffusers_steps_them(sampler, monkeypatch):
    """Only EulerDiscreteScheduler takes ``sigmas``: the others are given its levels and timesteps."""
    sigmas = list(AYS["sd15"].sigmas)
    euler = peers.scheduler("euler", "scaled", {}, sigmas=sigmas)
    scheduler = peers.scheduler(sampler, "scaled", {}, num_inference_steps=10)
    t, levels = euler.timesteps, euler.sigmas
    if sampler in ("dpmpp_2m", "unipc"):
        t = t.round()
    if sampler == "heun":  # the levels and timesteps of both rows of an interval
        t, levels = (one.repeat_interleave(2) for one in (t, levels))
        t, levels = t[1:], levels[1:-1]
    scheduler.timesteps, scheduler.sigmas = t, levels
    got = ours(SCALED, SAMPLERS[sampler](SCALED, sigmas=sigmas))
    same(got, peers.run(scheduler, monkeypatch), sampler)


@needs_diffusers
@pytest.mark.parametrize(
    ("sampler", "schedule", "sigmas"),
    [
        ("euler", "scaled", [14.615, 3.0, 0.5, 0.0]),
        ("euler", "linear", [157.0, 0.02, 0.0]),
        ("euler", "shift-1", [1.0, 0.7, 0.1]),
        ("euler", "shift-3", [1.0, 0.7, 0.1]),
        ("unipc", "shift-3", [1.0, 0.7, 0.5, 0.1]),
    ],
)
def test_own_levels_are_diffusers_sigmas(sampler, schedule, sigmas, monkeypatch):
    want = peers.run(peers.scheduler(sampler, schedule, {}, sigmas=np.array(sigmas)), monkeypatch)
    levels = peers.noise_schedule(schedule)
    same(ours(levels, SAMPLERS[sampler](levels, sigmas=sigmas)), want, sampler)


@needs_diffusers
def test_levels_of_ancestral_steps_are_those_of_euler(monkeypatch):
    """diffusers' EulerAncestralDiscreteScheduler has no others than the schedule's."""
    euler = peers.scheduler("euler", "scaled", {"karras": True}, num_inference_steps=7)
    scheduler = peers.scheduler("euler_ancestral", "scaled", {}, num_inference_steps=7)
    scheduler.timesteps, scheduler.sigmas = euler.timesteps, euler.sigmas
    want = peers.run(scheduler, monkeypatch)
    same(ours(SCALED, sf.samplers.euler_ancestral(SCALED, 7, levels="karras")), want, "euler_ancestral")


TWO_ROWS = ("heun", "dpmpp_sde", "kdpm2", "kdpm2_ancestral")
CHOOSING = [name for name, make in SAMPLERS.items() if "sigmas" in signature(make).parameters and name != "lcm"]


@pytest.mark.parametrize("sampler", CHOOSING)
def test_the_levels_of_a_rule_given_as_a_list_are_the_same_steps(sampler):
    schedule = support.schedule_of(sampler) if sampler in support.EDM_SAMPLERS else SCALED
    rounds = sampler.startswith("kdpm2")  # the timesteps of Karras' levels alone
    table = SAMPLERS[sampler](schedule, 6, levels="exponential" if rounds else "karras")
    levels = table.levels[::2] if sampler in TWO_ROWS else table.levels[:-1]
    own = SAMPLERS[sampler](schedule, sigmas=levels[:, 1] / levels[:, 0])
    np.testing.assert_allclose(own.rows, table.rows, rtol=1e-6, atol=1e-6)
    karras = (SAMPLERS[sampler](schedule, 6, **one).rows.tobytes() for one in ({"levels": "karras"}, {"karras": True}))
    assert len({*karras}) == 1


def test_every_sampler_that_takes_karras_takes_other_levels():
    for name, make in SAMPLERS.items():
        taken = signature(make).parameters.keys() & {"karras", "levels", "rho", "sigma_min", "sigma_max", "sigmas"}
        assert len(taken) in (0, 6) or name == "cm", name  # whose levels are those of its distillation
    assert len(CHOOSING) == 17


@pytest.mark.parametrize(
    "options", [{"levels": "beta"}, {"karras": True, "rho": 5.0}, {"sigmas": [1.0, 0.7, 0.1]}], ids=str
)
def test_every_sampler_on_a_flow_has_the_same_levels(options):
    options = {"steps": None if "sigmas" in options else 5, "shift": 2.0, "shift_terminal": 0.05, **options}
    euler = sf.samplers.euler(FLOW, **options).levels
    np.testing.assert_array_equal(sf.samplers.lcm(FLOW, **options).levels, euler)
    np.testing.assert_array_equal(sf.samplers.heun(FLOW, **options).levels[::2], euler[:-1])


@needs_diffusers
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    ("config", "ours", "mu"),
    [
        ({"shift": 1.0}, {"shift": 1.0}, None),
        ({"shift": 3.0}, {}, None),
        ({"use_dynamic_shifting": True}, {"shift": np.exp(0.8)}, 0.8),
    ],
    ids=["schnell", "shift", "dev"],
)
def test_trailing_levels_of_a_flow_are_those_that_flux_passes_to_its_scheduler(config, ours, mu, steps):
    import diffusers

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    table = sf.samplers.euler(FLOW, steps, spacing="trailing", **ours)
    np.testing.assert_allclose(table.levels[:, 1], scheduler.sigmas, rtol=1e-6)
    np.testing.assert_allclose(table["t"], scheduler.timesteps, rtol=1e-6)
    for sampler in (sf.samplers.lcm, sf.samplers.heun):
        levels = sampler(FLOW, steps, spacing="trailing", **ours).levels
        np.testing.assert_array_equal(levels[:: 1 + (sampler is sf.samplers.heun)][:steps], table.levels[:steps])
    unipc = sf.samplers.unipc(FLOW, steps, spacing="trailing", **ours).levels[:-1, 1]
    np.testing.assert_allclose(unipc, np.minimum(table.levels[:-1, 1], 1 - 1e-6), rtol=1e-6)


@pytest.mark.parametrize(
    "options", [{"levels": "exponential"}, {"levels": "beta"}, {"sigmas": AYS["sd15"].sigmas}], ids=str
)
def test_dpmpp_3m_sde_steps_over_the_levels_of_dpmpp_2m(options):
    steps = None if "sigmas" in options else 8
    third, second = (make(SCALED, steps, **options) for make in (sf.samplers.dpmpp_3m_sde, sf.samplers.dpmpp_2m))
    np.testing.assert_allclose(third.levels, second.levels, rtol=1e-12)
    np.testing.assert_array_equal(third["t"], second["t"])


def test_levels_of_karras_have_their_exponent():
    sigma = np.divide(*sf.samplers.euler(SCALED, 9, karras=True, rho=3.0).levels[:-1].T[::-1])
    np.testing.assert_allclose(np.diff(sigma ** (1 / 3)), np.diff(sigma ** (1 / 3))[0], rtol=1e-9)


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (0.5, 0.3), (1.0, 1.0), (2.0, 5.0), (5.0, 0.7)])
def test_quantiles_of_the_beta_distribution_are_scipys(a, b):
    stats = pytest.importorskip("scipy.stats")
    p = np.concatenate([np.linspace(0, 1, 101), [1e-12, 1e-6, 1 - 1e-9]])
    np.testing.assert_allclose(beta_quantile(p, a, b), stats.beta.ppf(p, a, b), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_published_levels_are_those_of_the_timesteps(name):
    found = AYS[name]
    assert len(found.timesteps) == 10
    for made in (found.at(10), found.sigmas):
        np.testing.assert_allclose(made, [*found.levels[:10], 0.0], rtol=1e-12)
    at = np.sqrt(1 / SCALED.alphas_cumprod[list(found.timesteps)] - 1)
    np.testing.assert_allclose(found.levels[:10], at, rtol=0.05)
    assert found.at(20)[::2] == pytest.approx(found.sigmas, rel=1e-12)
    assert len(sf.samplers.dpmpp_2m(SCALED, sigmas=found.at(6))) == 6
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        found.at(0)


@needs_diffusers
def test_published_levels_are_diffusers():
    from diffusers.schedulers import AysSchedules

    names = {"sd15": "StableDiffusion", "sdxl": "StableDiffusionXL", "svd": "StableDiffusionVideo"}
    for name, theirs in names.items():
        assert list(AYS[name].sigmas) == AysSchedules[f"{theirs}Sigmas"]
        assert list(AYS[name].timesteps or ()) == AysSchedules.get(f"{theirs}Timesteps", [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": "cosine"}, "levels must be one of 'schedule', 'karras', 'exponential', 'beta', 'lu', got 'cosine'"),
        ({"levels": "beta", "karras": True}, "karras must be left out with levels 'beta', got True"),
        ({"rho": 5.0}, r"rho must be left out with levels 'schedule', got 5.0"),
        ({"levels": "beta", "rho": 5.0}, r"rho must be left out with levels 'beta', got 5.0"),
        ({"karras": True, "rho": 0.0}, r"rho must be between 0.1 and 1000, got 0.0"),
        ({"sigma_min": 0.1}, "sigma_min must be left out with levels 'schedule', got 0.1"),
        ({"karras": True, "sigma_max": 80}, r"sigma_max must lie within .* levels, 0.029167 to 14.615, got 80"),
        ({"karras": True, "sigma_min": float("nan")}, "sigma_min must lie within .*, got nan"),
        ({"karras": True, "sigma_min": 5, "sigma_max": 1}, "sigma_min must be below sigma_max, got 5 and 1"),
        ({"karras": True, "timesteps": [900, 5]}, r"timesteps must be left out with levels 'karras', got \[900, 5\]"),
        ({"levels": "lu", "sigmas": [1.0]}, r"sigmas must be left out with levels 'lu', got \[1.0\]"),
        ({"timesteps": [900], "sigmas": [1.0]}, "timesteps must be left out with sigmas, got both"),
        ({"sigmas": [3.0, 3.0]}, r"sigmas\[1\] must be below the one before it, got 3.0"),
        ({"sigmas": [3.0, 0.0, 0.0]}, r"sigmas\[1\] must lie within the schedule's noise levels, .*, got 0$"),
        ({"sigmas": [0.0]}, r"sigmas\[0\] must lie within the schedule's noise levels, .*, got 0$"),
        ({"sigmas": [14.7, 1.0]}, r"sigmas\[0\] must lie within .*, 0.029167 to 14.615, got 14.7"),
        ({"sigmas": []}, "sigmas must be a list of at least one number, got shape"),
        ({"sigmas": [3.0, 1.0, 0.0], "steps": 3}, "steps must be the number of sigmas above 0, 2, or left out, got 3"),
    ],
    ids=str,
)
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_what_makes_no_sense_is_refused(sampler, options, message):
    options = dict(options) if "sigmas" in options or "timesteps" in options else {"steps": 5, **options}
    with pytest.raises(ValueError, match=f"^{message}"):
        SAMPLERS[sampler](SCALED, **options)


@pytest.mark.parametrize(
    ("sampler", "schedule", "options", "message"),
    [
        ("euler", FLOW, {"steps": 5, "levels": "lu"}, "levels must be other than 'lu' with a flow"),
        ("euler", FLOW, {"sigmas": [1.0, 0.0005]}, r"sigmas\[1\] must lie within .*, 0.001 to 1, got 0.0005"),
        ("euler", FLOW, {"timesteps": [900], "shift_terminal": 0.1}, "shift_terminal must be left out with timesteps"),
        ("euler", FLOW, {"steps": 5, "shift_terminal": 1.0}, "shift_terminal must be above 0 and below 1, or None"),
        ("euler", SCALED, {"steps": 5, "shift_terminal": 0.1}, "shift_terminal must be left out without a flow"),
        ("unipc", SCALED, {"steps": 5, "shift_terminal": 0.1}, "shift_terminal must be left out without a flow"),
        (
            "unipc",
            SCALED,
            {"sigmas": [3.0, 0.0], "final_alpha_cumprod": 0.999},
            "final_alpha_cumprod must be 1 with sigmas that end at 0, got 0.999",
        ),
    ],
)
def test_what_is_of_another_schedule_or_end_is_refused(sampler, schedule, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        SAMPLERS[sampler](schedule, **options)


def test_a_caller_s_choice_of_levels_replaces_the_model_s():
    info = sf.ModelInfo(
        (2,), SCALED, "epsilon", defaults={"sampler": "euler", "steps": 6, "karras": True, "sigma_min": 0.1}
    )
    for options in ({"levels": "beta"}, {"sigmas": [3.0, 1.0]}, {"timesteps": [900, 5]}, {"karras": False}):
        table = compile_table(info, None, None, None, None, options)
        steps = None if options.keys() & {"sigmas", "timesteps"} else 6
        assert table.rows.tobytes() == sf.samplers.euler(SCALED, steps, **options).rows.tobytes()
    assert compile_table(info, None, None, None, None, {"rho": 5.0}).options["karras"]


def test_the_last_steps_of_two_rows_over_own_levels():
    sigmas = AYS["sd15"].sigmas
    table = sf.samplers.dpmpp_sde(SCALED, sigmas=sigmas)
    late = begin_late(table, 0.5, SCALED)
    np.testing.assert_array_equal(late.rows, sf.samplers.dpmpp_sde(SCALED, sigmas=sigmas, begin=5).rows)


def test_the_last_steps_of_a_run_over_own_levels():
    sigmas = AYS["sd15"].sigmas
    with peers.engine(SCALED) as engine:
        image = np.zeros((peers.SIZE,), dtype=np.float32)
        table = sf.samplers.unipc(SCALED, sigmas=sigmas, order=3)
        got = engine.sample(1, image=image, strength=0.5, table=table, seed=1)
        rest = sf.samplers.unipc(SCALED, sigmas=sigmas, order=3, begin=5)
        start = rest.levels[0, 1] * sf.normal(1, (peers.SIZE,))
        np.testing.assert_allclose(got, engine.sample(1, table=rest, noise=start[None], seed=1), rtol=1e-5, atol=1e-6)
