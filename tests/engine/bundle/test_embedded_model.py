"""The embedded model ``fashion``: what it promises, and that the loop runs it as its table says."""

import numpy as np
import onnxruntime as ort
import pytest
import tolerances

import stepfuse as sf
from stepfuse.kernels.reference import fused_step_ref

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
BYTES_ALLOWED = 12e6


@pytest.fixture(scope="module")
def engine():
    with sf.Engine.load("fashion") as engine:
        yield engine


def test_it_is_what_its_manifest_promises():
    bundle = sf.Bundle.load("fashion")
    assert bundle.info.shape == (1, 28, 28)
    assert bundle.info.prediction_type == "epsilon"
    assert bundle.info.cond["class_labels"].names == CLASSES
    assert sum(entry["size"] for entry in bundle.files.values()) < BYTES_ALLOWED
    assert "Fashion-MNIST" in bundle.provenance
    assert "MIT" in bundle.licence


def test_a_named_sampler_is_the_table_of_that_name(engine):
    table = sf.samplers.ddim(engine.info.schedule, 6, guidance_scale=3.0)
    named = engine.sample(2, cond="bag", sampler="ddim", steps=6, guidance_scale=3.0, seed=1)
    np.testing.assert_array_equal(named, engine.sample(2, cond="bag", table=table, seed=1))


@pytest.fixture(scope="module")
def engine_of(backend):
    with sf.Engine.load("fashion", backend=backend) as engine:
        yield engine


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "heun", "lcm"])
def test_the_loop_is_the_network_and_the_oracle_of_the_step(engine_of, name):
    engine = engine_of
    table = sf.samplers.SAMPLERS[name](engine.info.schedule, 8, guidance_scale=3.0)
    session = ort.InferenceSession(sf.Bundle.load("fashion").denoiser, providers=["CPUExecutionProvider"])
    x = sf.normal(5, (1, 28, 28)).astype(np.float64) * table.init_scale
    h = np.zeros_like(x)
    for step, row in enumerate(table):
        inputs = {
            "sample": np.stack([row[1] * x] * 2).astype(np.float32),
            "timestep": np.full(2, row[0]),
            "class_labels": np.array([7, 10]),
        }
        cond, uncond = session.run(["prediction"], inputs)[0]
        z = sf.normal(5, x.shape, step=step, stream=1)
        x, h, _ = fused_step_ref(x, cond, row, uncond, h, z)
    image = engine.sample(1, cond="sneaker", table=table, seed=5)[0]
    assert np.abs(image - x).max() <= tolerances.EMBEDDED_MODEL * np.abs(x).max()


@pytest.mark.parametrize(("steps", "scale"), [(5, 1.0), (6, 3.0), (8, 3.0), (10, 1.0)])
def test_its_fitted_tables_end_nearer_to_a_fine_solution_than_the_best_solvers(engine, steps, scale):
    """On noises of other seeds than they were fitted to; ``examples/fashion/tables.py --compare`` measures more."""
    how = {"guidance_scale": scale, "cond": [i % 10 for i in range(12)], "seed": 4_000_000}
    fine = engine.sample(12, sampler="unipc", steps=60, **how)
    by_hand = [{"sampler": "dpmpp_2m"}, {"sampler": "unipc", "spacing": "trailing", "order": 3}]
    errors = [np.sqrt(np.mean((engine.sample(12, steps=steps, **one, **how) - fine) ** 2)) for one in by_hand]
    fitted = engine.sample(12, sampler=f"fitted-{steps}", **how)
    assert np.sqrt(np.mean((fitted - fine) ** 2)) < 0.8 * min(errors)


def test_a_table_for_another_guidance_than_the_model_s_has_to_be_asked_for(engine):
    with pytest.raises(ValueError, match=r"'fitted-10' is a table that was made for .*, got guidance_scale 3"):
        engine.table(sampler="fitted-10")
    assert engine.table(sampler="fitted-10", guidance_scale=1).options["guidance_scale"] == 1
    assert engine.table(sampler="fitted-8").options["guidance_scale"] == 3
