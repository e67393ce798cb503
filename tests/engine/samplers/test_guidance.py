"""APG and CFG-Zero* against diffusers' guiders, and the norm of patches against numpy's, over whole runs; refusals."""

import numpy as np
import peers
import pytest

import stepfuse as sf
from stepfuse import kernels
from stepfuse.requests.partial_run import begin_late
from stepfuse.requests.resolution import Compiler

diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")
guiders = pytest.importorskip("diffusers.guiders")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")

SCHEDULE, FLOW = sf.NoiseSchedule.linear(), sf.NoiseSchedule.flow()
SCALE = 5.0
APG = {"eta": 0.3, "adaptive_projected_guidance_rescale": 1.5}
RUNS = {
    "apg": ("ddim", "linear", {"apg": (0.3, 1.5)}),
    "apg-orthogonal": ("unipc", "shift-3", {"apg": (0.0, 0.0)}),
    "apg-norm": ("dpmpp_2m", "scaled", {"apg": (1.0, 1.0), "prediction_type": "v_prediction"}),
    "apg-rescaled": ("euler", "shift-3", {"apg": (0.3, 1.5), "guidance_rescale": 0.7}),
    "apg-thresholded": ("ddim", "linear", {"apg": (0.3, 1.5), "dynamic_threshold": (0.8, 2.0)}),
    "apg-of-clean": ("ddim", "linear", {"apg": (0.3, 4.0), "apg_form": "paper"}),
    "apg-of-clean-flow": ("heun", "shift-3", {"apg": (0.0, 1.5), "apg_form": "paper"}),
    "apg-of-clean-rescaled": ("plms", "linear", {"apg": (0.2, 2.5), "apg_form": "paper", "guidance_rescale": 0.5}),
    "star": ("euler", "shift-3", {"cfg_zero_star": True, "zero_init": 1}),
    "star-alone": ("ddim", "linear", {"cfg_zero_star": True}),
    "star-rescaled": ("unipc", "shift-1", {"cfg_zero_star": True, "guidance_rescale": 0.7}),
    "star-of-two-rows": ("heun", "shift-3", {"cfg_zero_star": True, "zero_init": 3}),
    "star-with-memory": ("dpmpp_2m", "scaled", {"cfg_zero_star": True, "zero_init": 2}),
}


def blend_of(scheduler, options, guided):
    """The guided predictions of diffusers' guider; steps that are not guided take the conditional one."""
    kind = guiders.ClassifierFreeZeroStarGuidance
    arguments = {"zero_init_steps": options.get("zero_init", 0)}
    clean = options.get("apg_form") == "paper"
    if "apg" in options:
        eta, norm_threshold = options["apg"]
        arguments = {"eta": eta, "adaptive_projected_guidance_rescale": norm_threshold}
        arguments |= {"use_original_formulation": clean}
        kind = guiders.AdaptiveProjectedGuidance
    rescale = options.get("guidance_rescale", 0.0)
    guider = kind(SCALE - 1 if clean else SCALE, **arguments, guidance_rescale=0.0 if clean else rescale)

    def blend(step, t, x, cond, uncond):
        guider.set_state(step=step, num_inference_steps=len(guided), timestep=t)
        if not guided[step] and step >= options.get("zero_init", 0):
            return cond
        if not clean:
            return guider.forward(cond, uncond).pred
        if hasattr(scheduler, "alphas_cumprod"):
            a = scheduler.alphas_cumprod[t.long()]
            on_x, on_e = a**-0.5, -((1 - a) ** 0.5) / a**0.5
        else:
            on_x, on_e = 1.0, -t.double() / 1000
        found = guider.forward(on_x * x + on_e * cond, on_x * x + on_e * uncond).pred
        found = (found - on_x * x) / on_e
        rescaled = guiders.guider_utils.rescale_noise_cfg(found, cond, rescale)
        return rescaled if rescale else found

    return blend


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.9)], ids=["all", "some"])
@pytest.mark.parametrize("name", RUNS)
def test_whole_runs_are_diffusers(name, interval, monkeypatch):
    sampler, schedule, options = RUNS[name]
    arguments = {one: value for one, value in options.items() if one != "prediction_type"}
    arguments |= {"sampler": sampler, "steps": 6, "guidance_scale": SCALE, "guidance_interval": interval}
    scheduler = peers.scheduler(sampler, schedule, options, num_inference_steps=6)
    with peers.engine(peers.noise_schedule(schedule), options.get("prediction_type", "epsilon")) as engine:
        guided = engine.table(**{**arguments, "zero_init": 0}).guided
        neighbour = engine.submit(sf.Request(cond=0.5, steps=9, seed=1, guidance_scale=2.0))
        got = engine.sample(peers.BATCH, cond=1.0, noise=peers.NOISE, **arguments)
        np.testing.assert_array_equal(
            neighbour.result(), engine.sample(cond=0.5, steps=9, seed=1, guidance_scale=2.0)[0]
        )
    want = peers.run(scheduler, monkeypatch, blend=blend_of(scheduler, options, guided))
    assert np.abs(got - want).max() < peers.TOLERANCES[sampler] * np.abs(want).max()


def patched(x, t, given):
    """A network over (4, 4, 6), of which classes change the direction and the length of every patch."""
    label, state = given["y"].reshape(-1, 1, 1, 1), x.astype(np.float32)
    return np.float32(np.sin(3 * state) + (label >= 0) * (0.5 + label / 4) * np.cos(2 * state[:, ::-1, ::-1]))


def patched_engine(**options):
    of_class = {"y": sf.CondInput(dtype="int64", null=-1)}
    return sf.Engine.from_callable(patched, shape=(4, 4, 6), schedule=SCHEDULE, cond=of_class, **options)


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "heun", "unipc"])
def test_patches_keep_the_norm_of_the_conditional_prediction(sampler, patch):
    """Each guided step is that of a prediction that numpy has rescaled; those outside of the interval are plain."""
    noise, arguments = sf.normal(3, (2, 4, 4, 6)), {"sampler": sampler, "steps": 6, "guidance_interval": (0.0, 0.8)}
    with patched_engine() as engine:
        plain = engine.table(guidance_scale=SCALE, **arguments)
        neighbour = engine.submit(sf.Request(cond=2, steps=9, seed=1, guidance_scale=2.0))
        got = engine.sample(2, cond=[1, 3], noise=noise, guidance_scale=SCALE, cfg_renorm=patch, **arguments)
        np.testing.assert_array_equal(neighbour.result(), engine.sample(cond=2, steps=9, seed=1, guidance_scale=2.0)[0])
    assert 0 < plain.guided.sum() < len(plain)
    for x, label, result in zip(noise, (1, 3), got, strict=True):
        x = plain.init_scale * x
        kept = {name: np.zeros_like(x) for name in ("h", "h2", "h3")[: plain.registers]}
        for row, guided in zip(plain.rows, plain.guided, strict=True):
            cond, uncond = patched(np.stack([x, x]) * row[1], None, {"y": np.array([label, -1])})
            e = np.float32(kernels.cfg_renorm_ref(cond, uncond, SCALE, patch)) if guided else cond
            x = sf.step(x, e, row, eps_uncond=e, **kept)
        assert np.abs(result - x).max() < 1e-4 * np.abs(x).max()


TABLE = sf.samplers.ddim(SCHEDULE, 10, guidance_scale=SCALE)
X, COND, UNCOND = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)


@pytest.mark.parametrize("isa", sf._core.isas())
@pytest.mark.parametrize(
    "options", [{"apg": (0.3, 2.0)}, {"apg": (0.3, 2.0), "apg_form": "paper"}, {"cfg_zero_star": True}], ids=str
)
def test_all_instruction_sets_give_the_same_bits(isa, options):
    row = TABLE.adapt(**options).adapted_row(3, X, COND, UNCOND)
    portable = sf.step(X, COND, row, eps_uncond=UNCOND, isa=sf._core.isas()[0])
    np.testing.assert_array_equal(sf.step(X, COND, row, eps_uncond=UNCOND, isa=isa), portable)


@pytest.mark.parametrize("share", [1.25, 1.25 * (1 + 1e-7), 1.25 * (1 - 1e-5), 0.0, -2.0, 1e6])
def test_weights_that_cancel_keep_their_digits(share):
    """At scale 5 the weights of CFG-Zero* are 5 and -4 s: as one row's blend they have no finite g at s = 5 / 4."""
    uncond = np.where(np.arange(64) % 2, UNCOND, 0)
    cond = np.float32(share * uncond + np.where(np.arange(64) % 2, 0, COND))
    want = guiders.ClassifierFreeZeroStarGuidance(SCALE, zero_init_steps=0)
    want.set_state(step=0, num_inference_steps=1, timestep=0)
    e = want.forward(*(as_tensor(one) for one in (cond, uncond))).pred.numpy()[0]
    row = TABLE.adapt(cfg_zero_star=True).adapted_row(3, X, cond, uncond)
    assert np.isfinite(row[: TABLE.columns.index("lo")]).all()
    got, plain = sf.step(X, cond, row, eps_uncond=uncond), sf.step(X, np.float32(e), TABLE[3])
    assert np.abs(got - plain).max() < 1e-6 * np.abs(plain).max()


def as_tensor(values):
    import torch

    return torch.from_numpy(values.astype(np.float64))[None]


@pytest.mark.parametrize("kind", ["zero", "equal", "zero-uncond", "parallel"])
@pytest.mark.parametrize(
    "options", [{"apg": (0.0, 2.0)}, {"apg": (0.0, 2.0), "apg_form": "paper"}, {"cfg_zero_star": True}], ids=str
)
def test_predictions_without_a_direction_give_finite_rows(kind, options):
    cond, uncond = {
        "zero": (0 * COND, 0 * COND),
        "equal": (COND, COND),
        "zero-uncond": (COND, 0 * COND),
        "parallel": (COND, 2 * COND),
    }[kind]
    row = TABLE.adapt(**options).adapted_row(3, X, cond, uncond)
    assert np.isfinite(sf.step(X, cond, row, eps_uncond=uncond)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "options", [{"apg": (0.0, 2.0)}, {"apg": (0.0, 2.0), "apg_form": "paper"}, {"cfg_zero_star": True}], ids=str
)
def test_what_is_not_finite_is_still_found(value, options):
    def broken(x, t, cond):
        return np.where((t[:, None] < 500) & (cond["y"][:, None] < 0), value, x)

    cond = {"y": sf.CondInput(dtype="int64", null=-1)}
    engine = sf.Engine.from_callable(broken, shape=(4,), schedule=SCHEDULE, cond=cond)
    with engine, pytest.raises(sf.DenoiserError, match="finite"):
        engine.sample(cond=1, guidance_scale=3.0, steps=4, seed=0, **options)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_still_found_in_patches(value):
    def broken(x, t, given):
        return np.where((t[:, None] < 500) & (given["y"][:, None] < 0), value, x.reshape(len(x), -1)).reshape(x.shape)

    of_class = {"y": sf.CondInput(dtype="int64", null=-1)}
    engine = sf.Engine.from_callable(broken, shape=(2, 2, 2), schedule=SCHEDULE, cond=of_class)
    with engine, pytest.raises(sf.DenoiserError, match="finite"):
        engine.sample(cond=1, guidance_scale=3.0, steps=4, seed=0, cfg_renorm=2)


def test_an_unguided_row_is_left_alone():
    row = TABLE.adapt(apg=(0.0, 2.0)).adapted_row(3, X, COND)
    np.testing.assert_array_equal(row, TABLE[3])


def test_zeroed_steps_take_one_pass_and_leave_a_flow_s_state():
    table = sf.samplers.euler(FLOW, 5, guidance_scale=SCALE)
    zeroed = table.with_zero_init(2)
    assert (zeroed.zero_init, zeroed.passes, table.passes) == (2, 8, 10)
    np.testing.assert_array_equal(sf.step(X, COND, zeroed[0]), X)
    np.testing.assert_array_equal(zeroed.rows[2:], table.rows[2:])
    assert (zeroed[1:].zero_init, zeroed[2:].zero_init, table.with_zero_init(0)) == (1, 0, table)
    assert zeroed.adapt(guidance_rescale=0.5).zero_init == 2


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "unipc", "plms"])
def test_a_late_beginning_leaves_out_steps_that_are_zeroed(sampler):
    plain = sf.samplers.SAMPLERS[sampler](SCHEDULE, 10, guidance_scale=SCALE)
    late = begin_late(plain.with_zero_init(3).adapt(apg=(0.0, 2.0)), 0.8, SCHEDULE)
    left = 3 - (len(plain) - len(late))
    assert late == begin_late(plain, 0.8, SCHEDULE).with_zero_init(left).adapt(apg=(0.0, 2.0))
    assert late.zero_init == left
    assert begin_late(plain.with_zero_init(3), 0.5, SCHEDULE).zero_init == 0


def test_a_table_keeps_it(tmp_path):
    every = [
        TABLE.with_zero_init(2),
        TABLE.adapt(cfg_zero_star=True),
        TABLE.adapt(apg=(0.1, 2.5)),
        TABLE.adapt(apg=(0.1, 2.5), apg_form="paper"),
        TABLE.adapt(cfg_renorm=2),
    ]
    for i, table in enumerate(every):
        table.save(tmp_path / f"{i}.npz")
        loaded = sf.StepTable.load(tmp_path / f"{i}.npz")
        assert loaded == table
        assert (loaded.zero_init, loaded.adaptation) == (table.zero_init, table.adaptation)
    assert len({*every, TABLE}) == len({one.digest for one in (*every, TABLE)}) == 6
    assert every[1].adapt() == TABLE


def test_a_model_s_defaults_are_for_calls_that_guide():
    info = sf.ModelInfo(
        (4,), SCHEDULE, cond={"y": sf.CondInput(null=-1)}, defaults={"apg": [0.0, 2.0], "apg_form": "paper"}
    )

    def compiled(scale=SCALE, **options):
        return Compiler(info).compile(guidance_scale=scale, options=options)

    assert (compiled().apg, compiled().apg_form) == ((0.0, 2.0), "paper")
    assert compiled(scale=1.0).apg is None
    assert compiled(apg=(0.5, 1.0)).apg == (0.5, 1.0)
    assert compiled(apg=None).adaptation == compiled(scale=1.0).adaptation
    assert (compiled(cfg_zero_star=True).apg, compiled(cfg_zero_star=True).cfg_zero_star) == (None, True)


def test_a_model_s_patches_are_for_calls_that_guide_by_nothing_else():
    info = sf.ModelInfo((4, 4, 6), SCHEDULE, cond={"y": sf.CondInput(null=-1)}, defaults={"cfg_renorm": 2})

    def renorm(scale=SCALE, **options):
        return Compiler(info).compile(guidance_scale=scale, options=options).cfg_renorm

    assert (renorm(), renorm(scale=1.0), renorm(cfg_renorm=0), renorm(cfg_renorm=1)) == (2, 0, 0, 1)
    assert renorm(apg=(0.0, 2.0)) == renorm(cfg_zero_star=True) == renorm(guidance_rescale=0.7) == 0
    assert renorm(scale=0.6, cfg_pp=True) == 0
    assert renorm(guidance_rescale=0.0) == renorm(apg=None) == 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cfg_renorm": 2.5}, TypeError, "cfg_renorm must be a whole number, got 2.5"),
        ({"cfg_renorm": -1}, ValueError, "cfg_renorm must be the side of a patch, at least 1, or 0 for none, got -1"),
        ({"cfg_renorm": 4}, ValueError, r"of shape \(C, H, W\), got 4 for \(4, 4, 6\)"),
        ({"cfg_renorm": 2, "guidance_rescale": 0.5}, ValueError, "left out with guidance_rescale: each .* 2 with 0.5"),
        ({"cfg_renorm": 2, "apg": (0.0, 1.0)}, ValueError, "cfg_renorm must be left out with apg"),
        ({"cfg_renorm": 2, "cfg_zero_star": True}, ValueError, "cfg_renorm must be left out with cfg_zero_star"),
        ({"cfg_renorm": 2, "guidance_scale": 1.0}, ValueError, "where no step of ddim is guided, got 2"),
        ({"cfg_renorm": 2, "cfg_pp": True, "guidance_scale": 0.6}, ValueError, "as those with cfg_pp do, got 2"),
    ],
)
def test_bad_patches_are_named(options, error, message):
    with patched_engine() as engine, pytest.raises(error, match=message):
        engine.sample(cond=1, **{"guidance_scale": SCALE, "steps": 4, **options})


def test_a_row_alone_has_no_patches():
    with pytest.raises(ValueError, match="since it changes predictions and not rows"):
        TABLE.adapt(cfg_renorm=2).adapted_row(3, X, COND, UNCOND)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"apg": 0.5}, TypeError, r"apg must be two numbers, \(eta, norm_threshold\), got 0.5"),
        ({"apg": (np.nan, 1.0)}, ValueError, r"apg must be \(eta, norm_threshold\), both finite, .* got \(nan, 1.0\)"),
        ({"apg": (0.0, -1.0)}, ValueError, r"the second at least 0, got \(0.0, -1.0\)"),
        ({"apg": (1.0, 0.0)}, ValueError, r"apg must be left out where it is plain guidance, .* got \(1.0, 0.0\)"),
        ({"apg": (0.0, 1.0), "cfg_zero_star": True}, ValueError, "apg must be left out with cfg_zero_star"),
        ({"apg": (0.0, 1.0), "apg_form": "own"}, ValueError, "apg_form must be 'diffusers' or 'paper', got 'own'"),
        ({"apg": (0.0, 1.0), "apg_form": 1}, TypeError, "apg_form must be a name, got 1"),
        ({"apg_form": "paper"}, ValueError, "apg_form must be left out without apg, got 'paper'"),
        ({"cfg_zero_star": 1}, TypeError, "cfg_zero_star must be True or False, got 1"),
        ({"zero_init": 4}, ValueError, "zero_init must be between 0 and 3, got 4"),
        ({"zero_init": -1}, ValueError, "zero_init must be between 0 and 3, got -1"),
        ({"zero_init": True}, TypeError, "zero_init must be a whole number, got True"),
        ({"apg": (0.0, 1.0), "cfg_pp": True, "guidance_scale": 0.6}, ValueError, "apg must be left out with these"),
        ({"cfg_zero_star": True, "cfg_pp": True, "guidance_scale": 0.6}, ValueError, "as those with cfg_pp do"),
        ({"apg": (0.0, 1.0), "guidance_scale": 1.0}, ValueError, "where no step of ddim is guided, got"),
        ({"cfg_zero_star": True, "guidance_scale": 1.0}, ValueError, "where no step of ddim is guided, got True"),
    ],
)
def test_bad_input_is_named(options, error, message):
    with peers.engine(SCHEDULE) as engine, pytest.raises(error, match=message):
        engine.sample(cond=1.0, **{"guidance_scale": SCALE, "steps": 4, **options})
