"""The frontier at equal forwards: its exact solution against closed forms, what it compares, and that it goes on."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import stepfuse as sf
from stepfuse.analysis import GaussianMixture
from stepfuse.fitting.hand_made import hand_made

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCHEDULE = sf.NoiseSchedule.linear()


@pytest.fixture(scope="module", autouse=True)
def benchmarks():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield


@pytest.fixture(scope="module")
def problem(benchmarks):
    from frontier_problems import mixture_problem

    problem = mixture_problem(12, (4, 8), steps=40)
    yield dataclasses.replace(problem, distance=lambda x: float(np.abs(x).mean()))  # its own takes its time
    problem.engine.close()


@pytest.fixture(scope="module")
def size(problem):
    from frontier import Size

    return Size((lambda: problem,), (4, 5), 6, 5, ("ddim", "kdpm2", "ddpm"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("frontier")


@pytest.fixture(scope="module")
def measured(problem, size, folder):
    """Rows of a small run, and what is said of its exact solution."""
    from frontier import Ledger, run

    exact, numbers = problem.exact(folder / "exact.npz")
    return [*run(problem, size, Ledger(folder / "rows.jsonl"), exact)][-1], numbers


def test_exact_solution_of_normal_data_is_the_closed_form():
    from frontier_problems import probability_flow

    mean, spread = np.array([[1.0, -2.0, 0.5]]), 0.3
    noise = np.random.default_rng(0).standard_normal((5, 3))
    a = SCHEDULE.alphas_cumprod[-1]
    x, sigma = noise / np.sqrt(a), np.sqrt((1 - a) / a)
    expected = mean + (x - mean) * spread / np.hypot(spread, sigma)
    found, coarse = (probability_flow(GaussianMixture(mean, spread), SCHEDULE, noise, steps) for steps in (160, 80))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    errors = [np.abs(one - expected).max() for one in (coarse, found)]
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.25)  # of order 4


def test_ddim_converges_to_the_exact_solution_in_first_order(problem):
    exact = problem.solve(12, 10**6, 1)
    tables = [problem.engine.table(sampler="ddim", steps=steps, spacing="trailing") for steps in (125, 250)]
    errors = [np.sqrt(np.mean((drawn - exact) ** 2)) for drawn in problem.sample(tables, 12)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)


def test_rows_say_what_was_measured(measured):
    from frontier_results import best

    rows, numbers = measured
    assert numbers["exact_error"] < 1e-2
    assert {row["forwards"] for row in rows} == {4, 5, 6}
    assert all(row["taken"] <= row["forwards"] for row in rows)
    assert all(row["noise"] or row["rms"] > 0 for row in rows)
    full = [row for row in rows if row["samples"] == 12]
    assert all("distance" in row for row in full)
    assert {row["sampler"] for row in full} >= {"ddim", "ddpm"}
    assert {row["forwards"] for row in rows if row["samples"] == 8} == {5}  # where noise levels are chosen
    assert best([row for row in rows if row["forwards"] == 5], "rms")["samples"] == 12


def test_a_second_run_measures_nothing(problem, size, measured, folder):
    from frontier import Ledger, run

    before = problem.engine.stats()["network_passes"]
    exact, numbers = problem.exact(folder / "exact.npz")
    assert ([*run(problem, size, Ledger(folder / "rows.jsonl"), exact)][-1], numbers) == measured
    assert problem.engine.stats()["network_passes"] == before


def test_figures_are_those_of_the_samples(problem):
    from frontier import figures

    exact = problem.solve(8, 10**6, 1)
    [entry] = [one for one in hand_made(problem.engine, 4, 1.0, samplers=("ddim",)) if one.levels == "trailing"]
    [drawn] = problem.sample([entry.table], 8)
    alone = problem.engine.sample(8, sampler="ddim", steps=4, spacing="trailing", seed=10**6)
    np.testing.assert_array_equal(drawn, alone)
    found = figures(problem, exact, entry, drawn, judged=False)
    assert found["rms"] == pytest.approx(np.sqrt(np.mean((drawn - exact) ** 2)))
    shifted = dataclasses.replace(entry, table=problem.engine.table(sampler="ddim", steps=4, eta=1.0))
    assert set(figures(problem, exact, shifted, drawn, judged=True)) == {"samples", "distance"}


def test_table_and_picture_are_drawn_of_a_run(measured):
    import figure_overlaps

    pytest.importorskip("matplotlib")
    from frontier_plot import draw_frontier
    from frontier_results import markdown

    rows, numbers = measured
    lines = markdown({"results": rows, "configuration": {"problems": {"mixture": numbers}}})
    assert [line.split(" | ")[0] for line in lines] == [f"| mixture, {count}" for count in (4, 5, 6)]
    figure = draw_frontier(rows, {"mixture": numbers})
    assert figure_overlaps.overlaps(figure) == []
