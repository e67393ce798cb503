"""What a step takes from its whole sample, against diffusers: guidance rescale and dynamic thresholding."""

import numpy as np
import peers
import pytest
import support

import stepfuse as sf

diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")

SCHEDULE = sf.NoiseSchedule.linear()
OPTIONS = {
    "rescaled": {"guidance_rescale": 0.7},
    "rescaled-all": {"guidance_rescale": 1.0, "prediction_type": "v_prediction"},
    "thresholded": {"dynamic_threshold": (0.8, 2.0)},
    "thresholded-x0": {"dynamic_threshold": (0.5, np.inf), "prediction_type": "sample"},
    "least": {"dynamic_threshold": (0.9, 1.0)},
    "largest": {"dynamic_threshold": (1.0, np.inf)},
    "both": {"guidance_rescale": 0.5, "dynamic_threshold": (0.8, 3.0)},
}
RUNS = [
    pytest.param(sampler, options, id=f"{sampler}-{name}")
    for sampler in ("ddim", "ddpm", "dpmpp_2m", "lcm", "unipc", "plms")
    for name, options in OPTIONS.items()
    if sampler != "plms" or "dynamic_threshold" not in options  # diffusers' PNDM has no thresholding
] + [
    pytest.param("dpmpp_2m_sde", OPTIONS["both"], id="dpmpp_2m_sde-both"),
    pytest.param("dpmpp_sde", OPTIONS["rescaled"], id="dpmpp_sde-rescaled"),
]


@pytest.mark.parametrize(("sampler", "options"), RUNS)
@pytest.mark.parametrize("steps", [2, 10])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_whole_runs_are_diffusers(sampler, steps, guidance_scale, options, monkeypatch):
    scheduler = peers.scheduler(sampler, "linear", options, num_inference_steps=steps)
    rescale = options.get("guidance_rescale", 0.0) if guidance_scale != 1 else 0.0  # as the pipelines do
    want = peers.run(scheduler, monkeypatch, guidance_scale, guidance_rescale=rescale)
    arguments = {name: value for name, value in options.items() if name != "prediction_type"}
    arguments |= {"sampler": sampler, "steps": steps, "guidance_scale": guidance_scale}
    with peers.engine(peers.noise_schedule("linear"), options.get("prediction_type", "epsilon")) as engine:
        plain = {"cond": 0.5, "steps": 9, "seed": 1}
        neighbour = engine.submit(sf.Request(**plain))  # shares forwards, and is not adapted
        got = engine.sample(peers.BATCH, cond=1.0, noise=peers.NOISE, seed=peers.SEED, **arguments)
        np.testing.assert_array_equal(neighbour.result(), engine.sample(**plain)[0])
    assert np.abs(got - want).max() < peers.TOLERANCES[sampler] * np.abs(want).max()


def test_a_row_alone_is_the_loop_s():
    table = sf.samplers.ddim(SCHEDULE, 5, guidance_scale=6.0).adapt(guidance_rescale=0.7, dynamic_threshold=(0.8, 2.0))
    with support.make_engine() as engine:
        [want] = engine.sample(cond=1, table=table, seed=0)
    x = sf.normal(0, support.SHAPE)
    for step in range(len(table)):
        rows, t = np.stack([x, x]), np.full(2, table["t"][step])
        cond, uncond = support.rowwise(rows, t, {"class_labels": np.array([1, support.NULL])})
        x = sf.step(x, cond, table.adapted_row(step, x, cond, uncond), eps_uncond=uncond)
    np.testing.assert_array_equal(x, want)


def test_a_constant_prediction_has_no_deviation_to_match():
    table = sf.samplers.ddim(SCHEDULE, 5, guidance_scale=6.0)
    x, ones = np.ones(8, np.float32), np.ones(8, np.float32)
    np.testing.assert_array_equal(table.adapt(guidance_rescale=0.7).adapted_row(0, x, ones, ones), table[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{"guidance_rescale": 0.7}, {"dynamic_threshold": (0.9, 2.0)}])
def test_what_is_not_finite_is_still_found(value, options):
    def broken(x, t, cond):
        return np.where(t[:, None] < 500, value, x)

    cond = {"y": sf.CondInput(dtype="int64", null=-1)}
    engine = sf.Engine.from_callable(broken, shape=(4,), schedule=SCHEDULE, cond=cond)
    with engine, pytest.raises(sf.DenoiserError, match="finite"):
        engine.sample(cond=1, guidance_scale=3.0, steps=4, seed=0, **options)


def test_a_table_keeps_it(tmp_path):
    plain = sf.samplers.ddim(SCHEDULE, 5)
    table = plain.adapt(guidance_rescale=0.7, dynamic_threshold=(0.99, np.inf))
    table.save(tmp_path / "table.npz")
    assert sf.StepTable.load(tmp_path / "table.npz") == table == table[:] != plain
    assert len({table, plain, table[:]}) == 2
    assert table.adapt() == plain


def test_a_model_s_defaults_may_name_it():
    info = sf.ModelInfo((4,), SCHEDULE, cond={"y": sf.CondInput(null=-1)}, defaults={"guidance_rescale": 0.7})
    compiler = sf.requests.resolution.Compiler(info)
    assert compiler.compile().guidance_rescale == 0.7
    assert compiler.compile(options={"guidance_rescale": 0.1}).guidance_rescale == 0.1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"guidance_rescale": 1.5}, ValueError, "guidance_rescale must be between 0 and 1, got 1.5"),
        ({"guidance_rescale": np.nan}, ValueError, "guidance_rescale must be between 0 and 1, got nan"),
        ({"guidance_rescale": "much"}, TypeError, "guidance_rescale must be a number, got 'much'"),
        ({"dynamic_threshold": 0.9}, TypeError, r"dynamic_threshold must be two numbers, \(ratio, largest\), got 0.9"),
        ({"dynamic_threshold": (0.0, 2.0)}, ValueError, r"0 < ratio <= 1 and largest >= 1, got \(0.0, 2.0\)"),
        ({"dynamic_threshold": (0.9, 0.5)}, ValueError, r"0 < ratio <= 1 and largest >= 1, got \(0.9, 0.5\)"),
        ({"dynamic_threshold": (0.9, 2.0), "clip": 1.0}, ValueError, "clip must be left out with dynamic_threshold"),
        (
            {"dynamic_threshold": (0.9, 2.0), "sampler": "plms"},
            ValueError,
            r"must be left out with these steps of plms, none of which reads the clean sample .* got \(0.9, 2.0\)",
        ),
        (
            {"dynamic_threshold": (0.9, 2.0), "sampler": "unipc", "predict_x0": False},
            ValueError,
            "must be left out with these steps of unipc",
        ),
    ],
)
def test_bad_input_is_named(options, error, message):
    with peers.engine(SCHEDULE) as engine, pytest.raises(error, match=message):
        engine.sample(cond=1.0, **options)
