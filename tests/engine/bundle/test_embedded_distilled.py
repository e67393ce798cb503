"""The embedded model ``fashion-8step``: eight passes by its manifest alone, and the images of its guided teacher."""

import numpy as np
import onnxruntime as ort
import pytest
import tolerances

import stepfuse as sf

TIMESTEPS = [999, 874, 749, 624, 499, 374, 249, 124]  # those that the student was trained at
BYTES_ALLOWED = 8.7e6
CLASSES = 10


@pytest.fixture(scope="module")
def engine():
    with sf.Engine.load("fashion-8step") as engine:
        yield engine


@pytest.fixture(scope="module")
def teacher():
    with sf.Engine.load("fashion") as engine:
        yield engine


def test_it_is_what_its_manifest_promises(teacher):
    bundle = sf.Bundle.load("fashion-8step")
    assert bundle.name == "fashion-8step"
    assert bundle.info.defaults == {"sampler": "ddim", "steps": 8, "spacing": "trailing", "guidance_scale": 1.0}
    assert bundle.info.cond["class_labels"] == teacher.info.cond["class_labels"]
    np.testing.assert_array_equal(bundle.info.schedule.alphas_cumprod, teacher.info.schedule.alphas_cumprod)
    assert sum(entry["size"] for entry in bundle.files.values()) <= BYTES_ALLOWED
    assert "Distilled from the bundle fashion" in bundle.provenance
    assert "MIT" in bundle.licence


def test_its_defaults_are_the_timesteps_it_was_trained_at(engine):
    table = engine.table()
    assert table.sampler == "ddim"
    assert table["t"].tolist() == TIMESTEPS
    assert table.passes == 8


def test_the_engine_counts_eight_passes_a_sample():
    with sf.Engine.load("fashion-8step") as engine:
        engine.sample(3, cond="bag", seed=1)
        assert engine.stats()["network_passes"] == 3 * 8


def test_the_loop_is_the_network_and_ddim_written_out(engine):
    session = ort.InferenceSession(sf.Bundle.load("fashion-8step").denoiser, providers=["CPUExecutionProvider"])
    alphas_cumprod = engine.info.schedule.alphas_cumprod
    x = sf.normal(5, (1, 28, 28)).astype(np.float64)
    for t, t_next in zip(TIMESTEPS, [*TIMESTEPS[1:], None], strict=True):
        inputs = {
            "sample": x[None].astype(np.float32),
            "timestep": np.float32([t]),
            "class_labels": np.array([7]),
        }
        eps = session.run(["prediction"], inputs)[0][0].astype(np.float64)
        a, a_next = alphas_cumprod[t], 1.0 if t_next is None else alphas_cumprod[t_next]
        x0 = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
        x = np.sqrt(a_next) * x0 + np.sqrt(1 - a_next) * eps
    image = engine.sample(1, cond="sneaker", seed=5)[0]
    assert np.abs(image - x).max() <= tolerances.EMBEDDED_MODEL * np.abs(x).max()


def test_it_draws_what_its_guided_teacher_draws_in_many_steps(engine, teacher):
    """Far nearer than the teacher's own eight passes, which are eight steps without guidance."""
    cond = list(range(CLASSES)) * 2
    reference = teacher.sample(len(cond), cond=cond, sampler="ddim", steps=40, guidance_scale=3.0, seed=0)
    unguided = teacher.sample(
        len(cond), cond=cond, sampler="ddim", steps=8, spacing="trailing", guidance_scale=1.0, seed=0
    )
    student = engine.sample(len(cond), cond=cond, seed=0)
    assert np.square(student - reference).mean() < np.square(unguided - reference).mean() / 3
