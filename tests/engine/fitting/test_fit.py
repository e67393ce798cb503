"""Fitted tables, against closed forms: normal data, whose noise prediction and whose solution are known."""

from dataclasses import replace

import numpy as np
import pytest
import support

import stepfuse as sf
from stepfuse.fitting import compare, fit
from stepfuse.fitting.fitted import table_of
from stepfuse.fitting.problem import Problem, fine_table
from stepfuse.fitting.rivals import rivals
from stepfuse.fitting.search import search
from stepfuse.fitting.starts import starts
from stepfuse.fitting.student import Student

SCHEDULE = sf.NoiseSchedule.linear()
SPREADS = np.array([0.1, 0.5, 2.0], np.float32)  # of the data, a dimension each
FEW = {"samples": 140, "held_out": 16, "rounds": 3}


def normal_eps(x, t, cond):
    """E[z | x_t] of data that is normal with mean 0 and ``SPREADS``, which conditioning doubles."""
    a = SCHEDULE.alphas_cumprod_at(np.asarray(t, np.float64))[:, None]
    spread = SPREADS * (1 + np.asarray(cond["y"], np.float64)[:, None]) if cond else SPREADS
    return (np.sqrt(1 - a) * x / (a * spread**2 + 1 - a)).astype(np.float32)


def solved(noise):
    """Where the probability-flow ODE takes noise at the last timestep: each dimension is scaled to its spread."""
    a = SCHEDULE.alphas_cumprod[-1]
    return noise * SPREADS / np.sqrt(a * SPREADS**2 + 1 - a)


@pytest.fixture(scope="module")
def engine():
    with sf.Engine.from_callable(normal_eps, shape=(3,), schedule=SCHEDULE, max_rows=4096) as engine:
        yield engine


@pytest.fixture(scope="module")
def guided():
    cond = {"y": sf.CondInput(dtype="int64", null=0)}
    with sf.Engine.from_callable(normal_eps, shape=(3,), schedule=SCHEDULE, cond=cond, max_rows=4096) as engine:
        yield engine


def test_three_factors_are_fitted_by_three_steps(engine):
    """The exact solution is linear with a factor a dimension; three steps of free weights can have all three."""
    fine = sf.samplers.unipc(SCHEDULE, 400)
    table = fit(engine, 3, reference=fine, **FEW)
    noise = np.random.default_rng(5).standard_normal((64, 3)).astype(np.float32)
    error, its = (engine.sample(64, table=one, noise=noise) - solved(noise) for one in (table, fine))
    assert np.sqrt(np.mean(error**2)) < 1.05 * np.sqrt(np.mean(its**2)) < 1e-3
    assert (table.sampler, len(table), table.options["steps"]) == ("fitted-3", 3, 3)


def test_a_fitted_table_is_far_ahead_of_those_made_by_hand(guided):
    table = fit(guided, 3, guidance_scale=3.0, cond=1, **FEW)
    found = compare(guided, table, cond=1, samples=16)
    assert found[0].name == "fitted-3"
    assert found[0].error < 0.65 * found[1].error
    assert len(found) > 10
    assert [one.error for one in found] == sorted(one.error for one in found)
    assert all(len(one.table) == 3 and one.distance is None for one in found)


def test_samplers_that_blow_up_where_the_network_fails_are_passed_over():
    def fragile(x, t, cond):
        return np.where(np.abs(x).max(axis=1, keepdims=True) > 8, np.nan, normal_eps(x, t, cond)).astype(np.float32)

    with sf.Engine.from_callable(fragile, shape=(3,), schedule=SCHEDULE, max_rows=4096) as engine:
        found = compare(engine, sf.samplers.ddim(SCHEDULE, 5), samples=16)
        assert np.isinf(found[-1].error)
        assert np.isfinite(found[0].error)
        table = fit(engine, 5, **{**FEW, "samples": 200, "rounds": 1})
    assert table.options["error"] < found[0].error


def test_samplers_whose_states_are_scaled_are_compared_as_they_sample(engine):
    """On the same timesteps ``euler``, which begins with noise of the largest level, is ``ddim``."""
    found = {one.name: one.error for one in compare(engine, sf.samplers.ddim(SCHEDULE, 5), samples=16)}
    assert found["euler, trailing"] == pytest.approx(found["ddim, trailing"], rel=0.02)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize(
    "made",
    [
        sf.samplers.ddim(SCHEDULE, 5, spacing="trailing"),
        sf.samplers.ipndm(SCHEDULE, 5),
        sf.samplers.deis(SCHEDULE, 5, order=3, karras=True),
        sf.samplers.unipc(SCHEDULE, 3, order=3),
        sf.samplers.dpmpp_2m(SCHEDULE, 4),
    ],
    ids=lambda table: table.sampler,
)
def test_a_student_begins_as_its_sampler_and_its_table_is_its_run(guided, made, scale):
    problem = Problem.of(guided, 6, 1, fine_table(guided, scale, 20), 0)
    begin = Student.blank(guided.info, len(made), scale, 3).beginning_as(made)
    guided_table = replace(made, rows=np.where(np.arange(made.rows.shape[1]) == 2, np.float32(scale), made.rows))
    np.testing.assert_allclose(problem.run(begin), problem.sample(guided_table, problem.noise), rtol=1e-4, atol=1e-4)
    rng = np.random.default_rng(1)
    moved = begin.with_vector(begin.vector * (1 + 0.1 * rng.standard_normal(begin.vector.shape)))
    moved = moved.with_vector(moved.vector + 0.01 * rng.standard_normal(begin.vector.shape))
    table = table_of(moved, {})
    np.testing.assert_allclose(problem.run(moved), problem.sample(table, problem.noise), rtol=2e-5, atol=2e-5)
    assert table.registers == min(3, len(made) - 1)
    assert table.has_second_line


def test_a_fit_begins_with_the_best_samplers(engine):
    problem = Problem.of(engine, 16, None, fine_table(engine, 1.0, 50), 0)
    found = starts(problem, Student.blank(engine.info, 4, 1.0, 3))
    errors = sorted(problem.error(one) for one in found)
    assert sorted(one.numbers[0, 0] < 0.99 for one in found) == [False, True]
    by_hand = [
        np.sqrt(np.mean((problem.sample(table, problem.noise) - problem.target) ** 2))
        for _, table in rivals(engine, 4, 1.0)
    ]
    assert errors[0] == pytest.approx(min(by_hand), rel=0.02)


def test_one_register_without_guidance_takes_one_line(engine):
    table = fit(engine, 3, registers=1, **FEW)
    assert not table.has_second_line
    assert table.registers == 1
    assert fit(engine, 3, registers=0, **FEW).registers == 0


def test_derivatives_are_those_of_the_run(guided):
    problem = Problem.of(guided, 5, 1, fine_table(guided, 2.0, 20), 0)
    begin = Student.blank(guided.info, 3, 2.0, 3).beginning_as(sf.samplers.ddim(SCHEDULE, 3, spacing="trailing"))
    student = search(begin, problem, problem, rounds=1).student
    residual, gram, slope = problem.linearized(student)
    np.testing.assert_allclose(np.mean(np.square(residual, dtype=np.float64)), problem.error(student) ** 2, rtol=1e-5)
    for index in range(len(slope)):
        way = np.zeros(len(slope))
        way[index] = 2e-3
        ahead, back = (problem.error(student.with_vector(student.vector + sign * way)) ** 2 for sign in (1, -1))
        assert (ahead - back) / 4e-3 == pytest.approx(2 * slope[index], rel=0.05, abs=2e-3 * np.abs(slope).max())
    assert np.linalg.eigvalsh(gram).min() > -1e-6 * np.linalg.eigvalsh(gram).max()


def test_the_same_seed_fits_the_same_table(engine):
    first, again, other = (fit(engine, 2, seed=seed, **FEW) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.rows, again.rows)
    assert not np.array_equal(first.rows, other.rows)


def test_a_fit_goes_on_from_its_checkpoint(engine, tmp_path):
    path = tmp_path / "fit.partial"
    lines = []
    first = fit(engine, 2, **{**FEW, "rounds": 1}, checkpoint=path)
    more = fit(engine, 2, **FEW, checkpoint=path, progress=lines.append)
    assert more.options["error"] < first.options["error"]
    assert len(lines) > 1
    with pytest.raises(ValueError, match=r"same arguments, .* differs in seed: give another file, or remove it"):
        fit(engine, 2, **FEW, seed=9, checkpoint=path)
    path.write_bytes(b"PK no such file")
    with pytest.raises(ValueError, match="checkpoint must be a file that a fit has written"):
        fit(engine, 2, **FEW, checkpoint=path)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be between 1 and 1000, got 0"),
        ({"steps": 2.5}, TypeError, "steps must be a whole number, got 2.5"),
        ({"registers": 4}, ValueError, "registers must be between 0 and 3, got 4"),
        ({"samples": 0}, ValueError, "samples must be at least 1, got 0"),
        (
            {"samples": 3},
            ValueError,
            r"samples must be at least \d+ to fit \d+ numbers to samples of 3 elements, got 3",
        ),
        ({"held_out": 0}, ValueError, "held_out must be at least 1, got 0"),
        ({"rounds": 0}, ValueError, "rounds must be at least 1, got 0"),
        ({"guidance_scale": 2.0}, ValueError, "guidance_scale must be 1 for a model that takes no conditioning"),
        ({"seed": -1}, ValueError, "seed must be between 0"),
        ({"cond": "bag"}, ValueError, "takes no conditioning"),
    ],
)
def test_bad_arguments_are_refused(engine, arguments, error, message):
    with pytest.raises(error, match=message):
        fit(engine, **{"steps": 3, **FEW, **arguments})


def test_a_network_that_is_not_deterministic_is_refused():
    rng = np.random.default_rng(0)

    def noisy(x, t, cond):
        return normal_eps(x, t, cond) + 0.01 * rng.standard_normal(x.shape).astype(np.float32)

    with (
        sf.Engine.from_callable(noisy, shape=(3,), schedule=SCHEDULE) as engine,
        pytest.raises(ValueError, match=r"must predict the same of the same states .* got predictions that are"),
    ):
        fit(engine, 2, **FEW)


def test_a_flow_is_fitted(tmp_path):
    schedule = sf.NoiseSchedule.flow()

    def velocity(x, t, cond):
        sigma = np.asarray(t, np.float64)[:, None] / schedule.num_train_timesteps
        variance = (1 - sigma) ** 2 * SPREADS**2 + sigma**2
        return ((sigma - (1 - sigma) * SPREADS**2) * x / variance).astype(np.float32)

    with sf.Engine.from_callable(velocity, shape=(3,), schedule=schedule, prediction_type="flow") as engine:
        table = fit(engine, 3, **FEW)
        noise = np.random.default_rng(5).standard_normal((64, 3)).astype(np.float32)
        error = engine.sample(64, table=table, noise=noise) - noise * SPREADS
    assert np.sqrt(np.mean(error**2)) < 5e-3
    table.save(tmp_path / "flow.npz")
    np.testing.assert_array_equal(sf.StepTable.load(tmp_path / "flow.npz").rows, table.rows)


def test_a_bundle_brings_tables_of_its_own(tmp_path):
    with sf.Engine.load(support.write_tiny_bundle(tmp_path / "plain").path) as engine:
        tables = {f"fitted-2-{scale}.npz": fit(engine, 2, guidance_scale=scale, **FEW) for scale in (1.0, 3.0)}
    bundle = support.write_tiny_bundle(tmp_path / "bundle", tables=tables)
    assert {name: table.digest for name, table in bundle.info.tables.items()} == {
        name: table.digest for name, table in tables.items()
    }
    with sf.Engine.load(bundle.path) as engine:
        for name, table in tables.items():
            scale = table.options["guidance_scale"]
            got = engine.sample(2, sampler="fitted-2", guidance_scale=scale, cond=1, seed=4)
            np.testing.assert_array_equal(got, engine.sample(2, table=tables[name], cond=1, seed=4))
        assert engine.table(sampler="fitted-2").options["guidance_scale"] == 1  # the model's default
        with pytest.raises(
            ValueError, match=r"sampler 'fitted-2' is a table that was made for steps 2, .* got steps 3"
        ):
            engine.sample(1, sampler="fitted-2", steps=3)
        with pytest.raises(ValueError, match="got guidance_scale 2"):
            engine.sample(1, sampler="fitted-2", guidance_scale=2.0)
        with pytest.raises(ValueError, match=r"got eta 0\.5"):
            engine.sample(1, sampler="fitted-2", eta=0.5)
        with pytest.raises(ValueError, match=r"unipc, .*fitted-2, got 'fitted-3' \(did you mean fitted-2\?\)"):
            engine.sample(1, sampler="fitted-3")


def test_a_bundle_whose_table_is_none_is_refused(tmp_path):
    with sf.Engine.load(support.write_tiny_bundle(tmp_path / "plain").path) as engine:
        table = fit(engine, 2, **FEW)
        ddim = engine.table(sampler="ddim", steps=2)
    with pytest.raises(ValueError, match="with a name that no sampler has, got 'ddim'"):
        support.write_tiny_bundle(tmp_path / "named", tables={"ddim.npz": ddim})
    bundle = support.write_tiny_bundle(tmp_path / "bundle", tables={"two.npz": table})
    manifest = bundle.path / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"tables": [\n    "two.npz"', '"tables": [\n    "other.npz"'))
    with pytest.raises(sf.BundleError, match=r"tables must be among its files, got 'other\.npz'"):
        sf.Bundle.load(bundle.path)
    manifest.write_text(text.replace('"tables": [\n    "two.npz"', '"tables": [\n    "denoiser.onnx"'))
    with pytest.raises(sf.BundleError, match=r"denoiser\.onnx: .* is not a saved StepTable"):
        sf.Bundle.load(bundle.path)
