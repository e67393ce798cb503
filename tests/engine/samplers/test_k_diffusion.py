"""SDE samplers against whole runs of k-diffusion 0.1.1, recorded with our noise by ``record_k_diffusion.py``."""

import json
from pathlib import Path

import numpy as np
import peers
import pytest
import tolerances

import stepfuse as sf

pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

RECORDED = Path(__file__).with_name("k_diffusion.json")
STEPS = (2, 3, 5, 7, 10, 25, 50)  # k-diffusion's 3M fails on one
V, KARRAS = {"prediction_type": "v_prediction"}, {"karras": True}
OPTIONS = {
    "dpmpp_2m_sde": {
        "half": ({"eta": 0.5}, (3, 10)),
        "heun": ({"eta": 0.3, "solver_type": "heun", **KARRAS}, (3, 10)),
    },
    "dpmpp_sde": {
        "plain": ({}, (2, 10)),
        "half": ({"eta": 0.5, **KARRAS}, (3, 10)),
        "ode": ({"eta": 0.0}, (3, 10)),
        "late": ({"begin": 4}, (10,)),
    },
    "dpmpp_3m_sde": {
        "plain": ({}, STEPS),
        "karras": (KARRAS, STEPS),
        "half": ({"eta": 0.5}, (3, 10)),
        "ode": ({"eta": 0.0}, (3, 10)),
        "v": ({**V, "spacing": "trailing"}, (2, 10)),
        "late": ({"begin": 4}, (10,)),
        "sigma-min": ({"final_alpha_cumprod": 0.999}, (3, 10)),
    },
}
#: Sampler, schedule, steps and options by a name for each run.
RUNS = {
    f"{sampler}-{case}-{steps}": (sampler, "scaled", steps, options)
    for sampler, cases in OPTIONS.items()
    for case, (options, counts) in cases.items()
    for steps in counts
} | {f"dpmpp_3m_sde-cosine-{steps}": ("dpmpp_3m_sde", "cosine", steps, KARRAS) for steps in (3, 10, 25)}


@pytest.fixture(scope="module")
def recorded():
    return json.loads(RECORDED.read_text())


def table_of(name):
    sampler, schedule, steps, options = RUNS[name]
    return getattr(sf.samplers, sampler)(peers.noise_schedule(schedule), steps, **options)


@pytest.mark.parametrize("name", RUNS)
def test_whole_runs_are_k_diffusion_s(name, recorded):
    table, want = table_of(name), np.array(recorded[name])
    with peers.engine(peers.noise_schedule(RUNS[name][1]), table.options["prediction_type"]) as engine:
        got = engine.sample(peers.BATCH, cond=1.0, table=table, noise=peers.NOISE, seed=peers.SEED)
    assert np.abs(got - want).max() < tolerances.MULTISTEP * np.abs(want).max()


def test_every_run_is_recorded(recorded):
    assert recorded.keys() == RUNS.keys()
