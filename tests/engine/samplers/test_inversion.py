"""DDIM backwards: against diffusers, against the flow of a Gaussian in closed form, and there and back again."""

import functools
import itertools

import numpy as np
import pytest
import support
import tolerances

import stepfuse as sf

LINEAR = sf.NoiseSchedule.linear()
SPREAD = 0.5  # standard deviation of the Gaussian's data


def smooth(x, t, cond):
    """A network of no particular kind."""
    time = np.asarray(t, dtype=np.float64).reshape(-1, *[1] * (x.ndim - 1))
    return np.tanh(0.7 * x + 0.3 * np.roll(x, 1, axis=-1)) * (1 + 0.1 * np.sin(time / 100))


def exact_eps(x, t, cond):
    """The noise prediction of normal data of deviation SPREAD, which is linear in x."""
    a = LINEAR.alphas_cumprod[t.astype(int)].reshape(-1, *[1] * (x.ndim - 1))
    return np.sqrt(1 - a) * x / (a * SPREAD**2 + 1 - a)


def engine_of(fn, **options):
    return sf.Engine.from_callable(fn, **{"shape": (12,), "schedule": LINEAR, **options})


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_it_is_diffusers(steps, spacing, prediction_type):
    diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")
    torch = pytest.importorskip("torch")
    config = {"clip_sample": False, "timestep_spacing": spacing, "prediction_type": prediction_type}
    scheduler = diffusers.DDIMInverseScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", **config)
    scheduler.alphas_cumprod = torch.from_numpy(LINEAR.alphas_cumprod.copy())
    scheduler.set_timesteps(steps)
    images = np.random.default_rng(0).uniform(-1, 1, (3, 12))
    x = torch.from_numpy(images)
    for t in scheduler.timesteps:
        output = smooth(x.numpy(), np.full(len(x), t), {})
        x = scheduler.step(torch.from_numpy(output), int(t), x, return_dict=False)[0]
    with engine_of(smooth, prediction_type=prediction_type) as engine:
        z = engine.encode(images, steps=steps, spacing=spacing, fixed_stride=True, refinements=0)
    assert np.abs(z - x.numpy()).max() <= tolerances.ONE_STEP * np.abs(x.numpy()).max()


def flow_error(steps, **options):
    """Distance from where the probability-flow ODE takes normal data: to its scaling by the marginals' deviations."""
    images = np.random.default_rng(1).normal(0, SPREAD, (4, 12))
    with engine_of(exact_eps) as engine:
        z = engine.encode(images, steps=steps, spacing="trailing", **options)
    a = LINEAR.alphas_cumprod[-1]
    expected = images * np.sqrt(a * SPREAD**2 + 1 - a) / SPREAD
    return np.abs(z - expected).max() / np.abs(expected).max()


def test_it_follows_the_probability_flow_of_a_gaussian():
    errors = [flow_error(steps, refinements=0) for steps in (125, 250, 500, 1000)]
    assert errors[-1] < 0.01
    for coarse, fine in itertools.pairwise(errors):
        assert 1.7 < coarse / fine < 2.3  # Euler's method: half the step, half the error


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_refined_it_is_the_exact_inverse_of_ddim(prediction_type):
    options = {"final_alpha_cumprod": 0.9999}  # sample prediction has no noise estimate without noise
    noise = np.random.default_rng(2).standard_normal((3, 12)).astype(np.float32)
    with engine_of(smooth, prediction_type=prediction_type) as engine:
        images = engine.sample(3, noise=noise, steps=100, **options)
        errors = [
            np.abs(engine.encode(images, steps=100, refinements=refinements, **options) - noise).max()
            for refinements in (0, 2, 20)
        ]
    assert errors[0] > 10 * errors[1]
    assert errors[2] < tolerances.INVERSE


def test_the_embedded_model_finds_its_images_again():
    with sf.Engine.load("fashion") as engine:
        images = engine.sample(4, cond=["bag", "coat", "sneaker", "dress"], steps=20, seed=0)
        noise = engine.encode(images, steps=100)
        again = engine.sample(4, noise=noise, sampler="ddim", steps=100)
    assert np.mean((again - images) ** 2) < 1e-3


def test_it_walks_back_over_the_model_s_own_timesteps(tmp_path):
    bundle = support.write_tiny_bundle(tmp_path / "tiny", defaults={"steps": 4, "spacing": "trailing", "clip": 1.0})
    image = np.zeros((1, *support.SHAPE), np.float32)
    with sf.Engine.load(bundle.path, threads=1) as engine:
        said = engine.encode(image, steps=4, spacing="trailing")
        np.testing.assert_array_equal(engine.encode(image), said)
        assert not np.array_equal(engine.encode(image, spacing="leading"), said)


def test_it_is_told_what_sample_is_told():
    with support.make_engine() as engine:
        encode = functools.partial(engine.encode, np.zeros((2, *support.SHAPE), np.float32), steps=4, refinements=0)
        conditional, nothing = encode(cond="bag"), encode()
        before = engine.stats()["network_passes"]
        guided = encode(cond="bag", guidance_scale=2.0)
        assert engine.stats()["network_passes"] - before == 2 * 2 * 4  # samples, passes, steps
    assert not np.array_equal(conditional, nothing)
    assert not np.array_equal(conditional, guided)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param({"images": np.zeros((0, 12))}, ValueError, r"images must .*, got \(0, 12\)", id="none"),
        pytest.param({"images": np.zeros((2, 11))}, ValueError, r"images must .*, got \(2, 11\)", id="shape"),
        pytest.param({"images": np.zeros((2, 12), int)}, TypeError, "images must be floating", id="integers"),
        pytest.param({"images": np.full((1, 12), np.nan)}, ValueError, "images must be finite, got nan", id="nan"),
        pytest.param({"refinements": -1}, ValueError, "refinements must be at least 0, got -1", id="refinements"),
        pytest.param({"guidance_scale": 2.0}, ValueError, "guidance_scale must be 1 .*, got 2.0", id="unguidable"),
        pytest.param({"steps": 1001}, ValueError, "steps must be between 1 and 1000, got 1001", id="steps"),
    ],
)
def test_bad_input_is_refused(arguments, error, message):
    with engine_of(smooth) as engine, pytest.raises(error, match=message):
        engine.encode(**{"images": np.zeros((2, 12)), **arguments})
