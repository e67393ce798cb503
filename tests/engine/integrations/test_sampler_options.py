"""Another sampler than a model's own: what diffusers' ``from_config`` makes of the own scheduler's file."""

import dataclasses
import json

import numpy as np
import peers
import pytest
from saved_schedulers import CLASSES, SCALED, saved

diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

import stepfuse as sf  # noqa: E402
from stepfuse.integrations.diffusers import scheduler_table  # noqa: E402
from stepfuse.integrations.scheduler_config import read_scheduler, with_algorithm  # noqa: E402
from stepfuse.requests.resolution import compile_table  # noqa: E402


def model(config):
    made = read_scheduler(config)
    return sf.ModelInfo(
        (4, 8, 8),
        made.schedule,
        made.prediction_type,
        defaults={"steps": 20, **made.defaults},
        sampler_options=made.sampler_options,
    )


@pytest.mark.parametrize("target", CLASSES)
@pytest.mark.parametrize("source", CLASSES)
def test_another_sampler_is_what_from_config_gives(source, target):
    config = saved(source)
    try:
        other = peers.scheduler_class(CLASSES[target]).from_config(with_algorithm(CLASSES[target], target, config))
        wanted = read_scheduler({**other.config, "_class_name": CLASSES[target]})
    except (ValueError, NotImplementedError):  # its own options are not covered: then the sampler is refused by name
        with pytest.raises(ValueError, match=f"scheduler configuration covers, .*, got '{target}'"):
            compile_table(model(config), target, None, None, None, {})
        return
    options = {name: value for name, value in wanted.defaults.items() if name != "sampler"}
    threshold = options.pop("dynamic_threshold", None)
    expected = sf.samplers.SAMPLERS[target](
        wanted.schedule, 20, prediction_type=wanted.prediction_type, **options
    ).adapt(dynamic_threshold=threshold)
    assert compile_table(model(config), target, 20, None, None, {}) == expected


@pytest.mark.parametrize("target", sorted(set(CLASSES) - {"ddim", "dpmpp_2s"}))  # which has no spacing in diffusers
def test_a_bundle_that_says_nothing_of_other_samplers_hands_them_what_both_share_alone(target):
    made = read_scheduler(saved("ddim"))
    info = sf.ModelInfo((4, 8, 8), made.schedule, defaults=made.defaults)
    table = compile_table(info, target, 20, None, None, {})
    assert table.options.get("final_alpha_cumprod", 1.0) == 1.0
    assert table.options.get("steps_offset", 1) == 1


def test_a_sampler_of_no_class_takes_spacing_and_levels_from_the_model_s_own_scheduler():
    table = compile_table(model(saved("euler")), "ipndm", 20, None, None, {})
    assert (table.options["karras"], table.options["spacing"], table.options["order"]) == (True, "trailing", 4)


def test_dpm_solver_on_a_model_of_ddim_ends_clean():
    """All data is one point: a clean end leaves no spread, one at the schedule's least noise leaves 0.03."""
    info = model(saved("ddim"))
    alphas = info.schedule.alphas_cumprod

    def exact(x, t, cond):
        a = alphas[t.astype(int)][:, None]
        return (x - np.sqrt(a) * 0.5) / np.sqrt(1 - a)

    table = compile_table(info, "dpmpp_2m", 20, None, None, {})
    with sf.Engine.from_callable(exact, shape=(256,), schedule=info.schedule) as engine:
        assert np.std(engine.sample(4, table=table, seed=0)) < 1e-6


def test_manifests_carry_the_options_of_other_samplers(tmp_path):
    info = model(saved("ddim"))
    network = tmp_path / "network"
    network.write_bytes(b"")  # a message without fields: no session is made of it
    written = sf.write_bundle(
        tmp_path / "bundle", name="x", info=info, files={"denoiser.onnx": network}, provenance="", licence=""
    )
    assert sf.Bundle.load(written.path).info.sampler_options == info.sampler_options
    manifest = json.loads((written.path / "manifest.json").read_text())
    manifest["sampler_options"]["euler"] = []
    (written.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(sf.BundleError, match=r"sampler_options\['euler'\] must be an object, got \[\]"):
        sf.Bundle.load(written.path)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "ddpm_strided", "euler", "heun", "dpmpp_2m", "unipc"])
@pytest.mark.parametrize("steps", [1, 499, 501, 998, 999, 1000])
@pytest.mark.filterwarnings("ignore::stepfuse.samplers.NaiveSamplerWarning")
def test_any_number_of_steps_runs_on_a_model_whose_timesteps_have_an_offset(sampler, steps):
    info = model(saved("ddim"))
    if sampler in ("dpmpp_2m", "unipc") and steps == 1000:
        with pytest.raises(ValueError, match="steps must be between 1 and 999, got 1000"):
            compile_table(info, sampler, steps, None, None, {})
        return
    table = compile_table(info, sampler, steps, None, None, {})
    assert table["t"].max() <= 999
    assert len(table) == (2 * steps - 1 if sampler == "heun" else steps)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "deis", "unipc", "lms", "kdpm2", "kdpm2_ancestral"])
@pytest.mark.parametrize("betas", [SCALED, {}], ids=["scaled_linear", "linear"])
def test_karras_levels_are_taken_at_every_number_of_steps(name, betas, spacing):
    """diffusers finds these timesteps in float32: the network gets its very own, and the levels agree."""
    scheduler = peers.scheduler_class(CLASSES[name])(**betas, timestep_spacing=spacing, use_karras_sigmas=True)
    for steps in (2, 4, 7, 18, 30, 50, 61, 77, 100):
        scheduler.set_timesteps(steps)
        table = scheduler_table.table_of(scheduler, {})
        np.testing.assert_array_equal(table["t"], np.float32(scheduler.timesteps))
        if name not in ("dpmpp_2m", "deis", "unipc", "kdpm2", "kdpm2_ancestral"):
            sigmas = np.sqrt(1 / table["s"].astype(np.float64) ** 2 - 1)
            levels = np.asarray(scheduler.sigmas[: len(table)], dtype=np.float64)
            np.testing.assert_allclose(sigmas, levels, rtol=2e-4)


@pytest.mark.parametrize(
    ("target", "options", "steps"),
    [
        ("dpmpp_2m", {}, 999),
        ("dpmpp_2m_sde", {}, 999),
        ("unipc", {}, 999),
        ("lcm", {"original_steps": 30}, 30),
    ],
)
def test_default_steps_are_no_more_than_the_sampler_takes(target, options, steps):
    """A pipeline of DDPM has all of T by default."""
    info = model(saved("ddpm"))
    info = dataclasses.replace(info, defaults={**info.defaults, "steps": 1000}, sampler_options={})
    assert len(compile_table(info, target, None, None, None, options)) == steps
    assert len(compile_table(info, target, 7, None, None, options)) == 7
