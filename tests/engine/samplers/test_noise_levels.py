"""Which noise levels a run visits: against diffusers' schedulers over whole runs, and what is refused."""

import numpy as np
import peers
import pytest
import support
import tolerances

import stepfuse as sf
from stepfuse.samplers import SAMPLERS
from stepfuse.samplers.beta_quantile import beta_quantile
from stepfuse.samplers.levels import LevelOptions

needs_diffusers = pytest.mark.skipif(not support.installed("diffusers"), reason="diffusers needs Python 3.11")
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning:diffusers")

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
]


def comparable(sampler, options, steps):
    """Whether diffusers' run is defined."""
    if steps == 1 and sampler == "deis":
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
    if sampler == "deis":
        options = {**options, "final_alpha_cumprod": levels.alphas_cumprod[0]}
    scheduler = peers.scheduler(sampler, schedule, options, num_inference_steps=steps)
    want = peers.run(scheduler, monkeypatch, options.get("guidance_scale", 1.0))
    table = SAMPLERS[sampler](levels, steps, **options)
    assert np.abs(table.rows[np.isfinite(table.rows)]).max() < 1e6
    same(ours(levels, table), want, sampler)
