"""The frontier and its orderings: on closed forms, on rows written by hand, and the shipped check as a user runs it."""

import dataclasses
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import stepfuse as sf
from stepfuse.analysis.experiments.frontier import LONG, Frontier, FrontierRow, default_configurations, frontier
from stepfuse.analysis.experiments.orderings import broken_orderings, orderings
from stepfuse.analysis.figures.frontier import draw_frontier
from stepfuse.analysis.measures.frechet import Statistics
from stepfuse.analysis.report.tables import rows_of, settings_of

SCRIPT = Path(__file__).resolve().parents[4] / "benchmarks" / "frontier_orderings.py"
SCHEDULE = sf.NoiseSchedule.linear()
MEANS, SPREAD, NULL = np.array([[1.5, 0.0], [-1.5, 0.0]]), 0.2, 2
COND = {"side": sf.CondInput(dtype="int64", null=NULL, names=("right", "left"))}
SAMPLES = 300


def exact_eps(x, t, cond):
    """E[z | x_t] of one Gaussian per class, and of the mixture of both for an unconditional row."""
    a = SCHEDULE.alphas_cumprod[t.astype(int)][:, None, None]
    offset = x[:, None, :] - np.sqrt(a) * MEANS
    variance = a * SPREAD**2 + 1 - a
    logits = -(offset**2).sum(2) / (2 * variance[:, :, 0])
    if cond:
        side = cond["side"][:, None]
        logits = np.where((side == NULL) | (side == np.arange(2)), logits, -np.inf)
    posterior = np.exp(logits - logits.max(1, keepdims=True))
    posterior /= posterior.sum(1, keepdims=True)
    return np.sqrt(1 - a[:, :, 0]) * (posterior[:, :, None] * offset / variance).sum(1)


def make_engine(**options):
    return sf.Engine.from_callable(
        exact_eps, **{"shape": (2,), "schedule": SCHEDULE, "cond": COND, "max_rows": 2 * SAMPLES, **options}
    )


def real():
    """Exact moments of the data: half of it about each mean."""
    return Statistics(np.zeros(2), np.diag([1.5**2 + SPREAD**2, SPREAD**2]), 1_000_000)


@pytest.fixture(scope="module")
def measured():
    with make_engine() as teacher, make_engine() as student:
        yield frontier(
            teacher,
            student=student,
            features=lambda x: x,
            reference=real(),
            samples=SAMPLES,
            guidance_scale=3.0,
            student_configurations=[("ddim", {"steps": 8, "spacing": "trailing"}), ("ddim", {"steps": 4})],
            flops_per_pass=2e6,
            student_flops_per_pass=1e6,
        )


def by_label(measured):
    return {row.label: row for row in measured.rows}


def test_the_default_rows_are_there_with_their_passes_as_the_engine_counts_them(measured):
    assert {label: row.passes for label, row in by_label(measured).items()} == {
        "DDPM 1000": 1000,
        "naive strided DDPM 50": 50,
        "DDIM 50": 50,
        **{f"DDIM {s}, guidance {g}": 2 * s for g in ("1.5", "3") for s in (10, 20, 50, 100)},
        **{f"DPM-Solver++ 2M {s}, guidance {g}": 2 * s for g in ("1.5", "3") for s in (10, 20)},
        "distilled 8": 8,
        "distilled 4": 4,
    }


def test_flops_follow_from_the_passes_of_each_model(measured):
    rows = by_label(measured)
    assert rows["DDIM 50, guidance 3"].gflops == pytest.approx(100 * 2e6 / 1e9)
    assert rows["distilled 8"].gflops == pytest.approx(8 * 1e6 / 1e9)


def test_latency_is_of_one_sample_and_throughput_of_all(monkeypatch):
    """On a clock that a forward moves by a millisecond, a latency is a count of steps, guided or not."""
    forwards = []

    def count(x, t, cond):
        forwards.append(len(x))
        return exact_eps(x, t, cond)

    clock = types.SimpleNamespace(perf_counter=lambda: len(forwards) / 1000, sleep=lambda _: None)
    monkeypatch.setattr("stepfuse.analysis.experiments.frontier.time", clock)
    with sf.Engine.from_callable(count, shape=(2,), schedule=SCHEDULE, cond=COND) as engine:
        found = frontier(
            engine, samples=6, configurations=[("ddim", {"steps": 9, "guidance_scale": 3.0}), ("ddpm", {"steps": 20})]
        )
    assert [row.latency_ms for row in found.rows] == pytest.approx([9, 20])
    assert [row.throughput for row in found.rows] == pytest.approx([6 / 0.009, 6 / 0.020])


def test_exact_noise_predictions_put_the_good_samplers_near_the_data_and_naive_striding_far(measured):
    rows = by_label(measured)
    assert rows["DDPM 1000"].distance < 0.02
    assert rows["DDIM 50"].distance < 0.02
    assert rows["naive strided DDPM 50"].distance > 10 * rows["DDIM 50"].distance


def test_every_row_has_the_same_classes_and_seeds(measured):
    classes = [i % 2 for i in range(SAMPLES)]
    with make_engine() as engine:
        again = engine.sample(SAMPLES, cond=classes, sampler="ddim", steps=20, guidance_scale=1.5, seed=0)
    index = [row.label for row in measured.rows].index("DDIM 20, guidance 1.5")
    np.testing.assert_array_equal(measured.images[index], again[:10])
    sides = np.sign(measured.images[:, :, 0])
    good = [i for i, row in enumerate(measured.rows) if row.sampler != "ddpm_strided"]
    np.testing.assert_array_equal(sides[good], np.broadcast_to(np.tile([1.0, -1.0], 5), (len(good), 10)))


def test_one_long_run_is_enough_and_short_ones_are_repeated():
    rows_of_calls = []

    def count(x, t, cond):
        rows_of_calls.append(len(x))
        return exact_eps(x, t, cond)

    engine = sf.Engine.from_callable(count, shape=(2,), schedule=SCHEDULE, cond=COND)
    with engine:
        frontier(
            engine, samples=7, latency_repeats=4, configurations=[("ddpm", {"steps": LONG}), ("ddim", {"steps": 9})]
        )
    assert rows_of_calls.count(7) == LONG + 9  # all at once, in every step
    warm = rows_of_calls.count(2)  # nothing is guided here
    assert warm == 1 + 4
    assert rows_of_calls.count(1) == warm + LONG + 4 * 9


def test_a_model_without_conditioning_is_not_guided():
    info = sf.ModelInfo(shape=(2,), schedule=SCHEDULE)
    assert default_configurations(info) == [
        ("ddpm", {"steps": 1000, "guidance_scale": 1.0}),
        ("ddpm_strided", {"steps": 50, "guidance_scale": 1.0}),
        *[("ddim", {"steps": steps, "guidance_scale": 1.0}) for steps in (50, 10, 20, 100)],
        *[("dpmpp_2m", {"steps": steps, "guidance_scale": 1.0}) for steps in (10, 20)],
    ]


def test_a_short_schedule_gets_the_rows_it_has_steps_for():
    info = sf.ModelInfo(shape=(2,), schedule=sf.NoiseSchedule.linear(num_train_timesteps=40))
    assert [(sampler, one["steps"]) for sampler, one in default_configurations(info)] == [
        ("ddpm", 40), ("ddim", 10), ("ddim", 20), ("dpmpp_2m", 10), ("dpmpp_2m", 20),
    ]  # fmt: skip


def test_a_flow_model_gets_euler():
    info = sf.ModelInfo(shape=(2,), schedule=sf.NoiseSchedule.flow(), prediction_type="flow")
    assert [(sampler, one["steps"]) for sampler, one in default_configurations(info)] == [
        ("euler", steps) for steps in (10, 20, 50, 100)
    ]
    with sf.Engine.from_callable(
        lambda x, t, cond: x, shape=(2,), schedule=info.schedule, prediction_type="flow"
    ) as engine:
        assert [row.passes for row in frontier(engine, samples=2, latency_repeats=1).rows] == [10, 20, 50, 100]


def test_guided_ddpm_is_asked_for():
    info = sf.ModelInfo(shape=(2,), schedule=SCHEDULE, cond=COND, defaults={"guidance_scale": 3.0})
    more = [one for one in default_configurations(info, guided_ddpm=True) if one not in default_configurations(info)]
    assert more == [("ddpm", {"steps": 1000, "guidance_scale": 3.0})]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"samples": 0}, "samples must be at least 1, got 0", id="no-samples"),
        pytest.param({"latency_repeats": 0}, "latency_repeats must be at least 1, got 0", id="no-repeats"),
        pytest.param({"configurations": []}, "samplers must be at least one, got none", id="no-rows"),
        pytest.param({"features": lambda x: x}, "reference must be given, got None", id="no-reference"),
        pytest.param(
            {"configurations": [("ddim", {"steps": 2})], "samples": 2, "features": lambda x: x, "reference": real()},
            "must be more images than features, or the covariance is singular: got 2",
            id="fewer-samples-than-features",
        ),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with make_engine() as engine, pytest.raises(ValueError, match=message):
        frontier(engine, **arguments)


def test_a_student_of_another_model_is_refused():
    wrong = pytest.raises(ValueError, match=r"student's cond must be its teacher's .*, got {}")
    with make_engine() as teacher, make_engine(cond=None) as student, wrong:
        frontier(teacher, student=student, samples=1)


def test_the_figure_names_every_row_and_no_name_covers_another_or_a_point(measured):
    """With latencies as they go with the passes, not of a network that costs nothing."""
    rows = [dataclasses.replace(row, latency_ms=0.9 * row.passes) for row in measured.rows]
    figure = draw_frontier(dataclasses.replace(measured, rows=tuple(rows)))
    figure.draw_without_rendering()
    [axes] = figure.axes
    assert sorted(text.get_text() for text in axes.texts) == sorted(row.label.split(",")[0] for row in rows)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)] == []
    points = axes.transData.transform([(row.latency_ms, row.distance) for row in rows])
    assert not any(box.contains(*point) for box in boxes for point in points)
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
    said = [text.get_text() for text in axes.get_legend().get_texts()]
    assert said == ["no guidance", "guidance 1.5", "guidance 3 (in distilled: folded in)"]


def test_pictures_are_shown_from_the_fastest_to_the_slowest():
    images = np.linspace(-1, 1, 8, dtype=np.float32)[:, None, None, None, None] * np.ones((8, 10, 1, 4, 4), np.float32)
    figure = draw_frontier(dataclasses.replace(hand_written(), images=images))
    shown = [label.get_text().replace("\n", " ") for label in figure.axes[1].get_xticklabels()]
    assert shown == [
        "distilled 4", "distilled 8", "naive strided DDPM 50", "DDIM 50", "DDIM 50 guidance 1.5",
        "DDIM 50 guidance 3", "DDPM 1000",
    ]  # fmt: skip


def test_without_a_judge_the_figure_shows_the_passes():
    with make_engine() as engine:
        found = frontier(engine, samples=2, configurations=[("ddim", {"steps": 3}), ("ddim", {"steps": 5})])
    assert [(row.distance, row.accuracy, row.gflops) for row in found.rows] == [(None, None, None)] * 2
    assert draw_frontier(found).axes[0].get_ylabel() == "network passes a sample"


# ---- orderings, on rows written by hand


def row(label, sampler, steps, scale, latency, distance, model="teacher"):
    return FrontierRow(label, model, sampler, steps, "", scale, float(steps), latency, 1.0, None, distance, None)


GOOD = {
    "ddpm": row("DDPM 1000", "ddpm", 1000, 1.0, 900.0, 4.0),
    "naive": row("naive strided DDPM 50", "ddpm_strided", 50, 1.0, 45.0, 60.0),
    "ddim": row("DDIM 50", "ddim", 50, 1.0, 45.0, 7.0),
    "best": row("DDIM 50, guidance 1.5", "ddim", 50, 1.5, 70.0, 4.5),
    "usual": row("DDIM 50, guidance 3", "ddim", 50, 3.0, 70.0, 16.0),
    "short": row("DDIM 10, guidance 3", "ddim", 10, 3.0, 14.0, 18.0),
    "distilled": row("distilled 8", "ddim", 8, 1.0, 9.0, 15.0, "student"),
    "fewer": row("distilled 4", "ddim", 4, 1.0, 5.0, 40.0, "student"),
}


def hand_written(**changes):
    rows = {
        name: dataclasses.replace(one, **changes.get(name, {}))
        for name, one in GOOD.items()
        if changes.get(name, {}) is not None
    }
    return Frontier(tuple(rows.values()), 500, 3, 3.0, 0, (-1.0, 1.0))


def test_a_good_frontier_breaks_nothing_and_the_unguided_ratio_is_reported():
    found = hand_written()
    assert broken_orderings(found) == []
    [reported] = [one for one in orderings(found) if one.holds is None]
    assert reported.measured == "7 (DDIM 50) / 4 (DDPM 1000) = 1.75"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        pytest.param({"naive": {"distance": 34.0}}, "at least 5, got 34 (naive strided DDPM 50) / 7", id="naive-good"),
        pytest.param({"best": {"distance": 5.3}}, "at most 1.3, got 5.3 (DDIM 50, guidance 1.5) / 4", id="ddim-bad"),
        pytest.param({"distilled": {"latency_ms": 14.5}}, "got 14.5 ms, DDIM 10, guidance 3 14 ms", id="slow-student"),
        pytest.param({"distilled": {"distance": 12.0}}, "at least 0.769, got 12 (distilled 8) / 16", id="too-good"),
        pytest.param({"distilled": {"distance": 61.0}}, "at most 1, got 61 (distilled 8) / 60", id="student-bad"),
    ],
)
def test_each_ordering_is_broken_by_what_it_forbids(changes, said):
    [broken] = broken_orderings(hand_written(**changes))
    assert said in broken


def test_bounds_themselves_hold():
    assert broken_orderings(hand_written(naive={"distance": 35.0}, best={"distance": 5.2})) == []


def test_guided_ddpm_is_compared_with_ddim_at_its_guidance():
    guided = row("DDPM 1000, guidance 3", "ddpm", 1000, 3.0, 1800.0, 12.0)
    found = dataclasses.replace(hand_written(), rows=(*GOOD.values(), guided))
    [broken] = broken_orderings(found)
    assert "both at guidance 3" in broken
    assert "got 16 (DDIM 50, guidance 3) / 12 (DDPM 1000, guidance 3) = 1.33" in broken
    better = dataclasses.replace(guided, distance=14.0)
    assert broken_orderings(dataclasses.replace(found, rows=(*GOOD.values(), better))) == []


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        pytest.param({"naive": None}, 2, id="no-naive"),
        pytest.param({"ddpm": None}, 1, id="no-ddpm"),
        pytest.param({"distilled": None, "fewer": None}, 3, id="no-student"),
        pytest.param({name: {"distance": None} for name in GOOD}, 4, id="no-judge"),
    ],
)
def test_what_cannot_be_checked_does_not_hold(changes, count):
    broken = broken_orderings(hand_written(**changes))
    assert len(broken) == count
    assert all(line.endswith(("got no such row", "got no distance")) for line in broken)


def test_a_model_without_guidance_is_compared_as_it_is():
    found = hand_written(best=None, usual=None, short=None, ddim={"distance": 5.0}, distilled={"distance": 5.0})
    found = dataclasses.replace(found, guidance_scale=1.0)
    assert broken_orderings(found) == []


# ---- the script


def as_json(found):
    return json.dumps({"rows": rows_of(found)["rows"], "settings": settings_of(found)})


def check(path):
    return subprocess.run([sys.executable, SCRIPT, path], capture_output=True, text=True, check=False)


def test_the_script_passes_a_good_frontier_and_names_what_is_broken(tmp_path):
    path = tmp_path / "frontier.json"
    path.write_text(as_json(hand_written()))
    done = check(path)
    assert done.returncode == 0, done.stderr
    path.write_text(as_json(hand_written(best={"distance": 6.0})))
    done = check(path)
    assert done.returncode == 1
    assert done.stderr.startswith("does not hold: DDIM 50 at its best guidance over DDPM: the ratio of ")
    assert done.stderr.count("\n") == 1


def test_what_is_no_frontier_is_refused(tmp_path):
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"rows": [{"label": "x"}]}))
    with pytest.raises(ValueError, match=r"other.json must be a frontier's JSON: .*missing"):
        Frontier.from_json(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"other.json must be a frontier's JSON"):
        Frontier.from_json(path)


def test_a_frontier_comes_back_from_its_file_without_its_pictures(tmp_path, measured):
    path = tmp_path / "frontier.json"
    path.write_text(as_json(measured))
    assert vars(Frontier.from_json(path)) == {**vars(measured), "images": None}
