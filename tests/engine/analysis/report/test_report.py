"""The report: what it leaves on disk, for models of every kind, and what ``stepfuse analyze`` prints."""

import csv
import json
import re
import shutil

import numpy as np
import onnx
import pytest
import support
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from typer.testing import CliRunner

import stepfuse as sf
from stepfuse.analysis import Frontier, GaussianMixture, Judge, Statistics, analyze, frechet_distance, redraw
from stepfuse.analysis.measures.onnx_features import feature_function
from stepfuse.analysis.report.catalog import EXPERIMENTS
from stepfuse.analysis.report.options import JUDGED, SIZES
from stepfuse.analysis.report.subject import opened
from stepfuse.cli import analyze as cli_analyze
from stepfuse.cli import app

SHORT = sf.NoiseSchedule.linear(num_train_timesteps=40)
MIXTURE = GaussianMixture([[1.5, 0.0], [-0.75, 1.3], [-0.75, -1.3]], 0.2)
runner = CliRunner()


def pictures_network(x, t, cond):
    """Noise for grey pictures whose level is the class: all of a batch at once."""
    labels = cond["class_labels"] if "class_labels" in cond else np.full(len(x), support.NULL)
    clean = (np.asarray(labels, dtype=np.float32) / support.NULL - 0.5).reshape(-1, 1, 1, 1) * np.float32(0.5)
    a = SHORT.alphas_cumprod[np.asarray(t).astype(int)].astype(np.float32).reshape(-1, 1, 1, 1)
    variance = 0.04 * a + 1 - a
    return np.sqrt(1 - a) * (x - np.sqrt(a) * clean) / variance


def picture_engine():
    return sf.Engine.from_callable(pictures_network, shape=(1, 4, 5), schedule=SHORT, cond=support.COND)


def point_engine(schedule=SHORT):
    return MIXTURE.engine(schedule)


def spread_features(images):
    """Three features that no two of them determine."""
    flat = images.reshape(len(images), -1)
    return np.stack([flat.mean(1), flat.std(1), flat[:, 0]], axis=1)


REAL = np.random.default_rng(0).normal(0, 0.3, (500, 1, 4, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """The whole report of a model of pictures with classes, measured by a feature function."""
    folder = tmp_path_factory.mktemp("judged")
    with picture_engine() as engine:
        outcomes = analyze(engine, folder, quick=True, features=spread_features, real=REAL)
    return folder, outcomes


def test_every_experiment_leaves_its_picture_rows_and_record(judged):
    folder, outcomes = judged
    ran = [outcome.name for outcome in outcomes if not outcome.skipped]
    assert [outcome.name for outcome in outcomes] == list(EXPERIMENTS)
    assert set(EXPERIMENTS) - set(ran) == {"round_trip_conditioned"}  # the classes of the real samples are not known
    for name in ran:
        with Image.open(folder / f"{name}.png") as picture:
            picture.load()
            assert min(picture.size) > 200
        record = json.loads((folder / f"{name}.json").read_text())
        rows = list(csv.DictReader((folder / f"{name}.csv").open()))
        assert len(rows) == len(record["rows"]) > 0
        assert list(rows[0]) == list(record["rows"][0])
        for row, same in zip(rows, record["rows"], strict=True):
            for key, value in same.items():
                assert row[key] == (
                    "" if value is None else " to ".join(map(str, value)) if isinstance(value, list) else str(value)
                )
        assert record["findings"]
        assert record["seconds"] > 0
        assert record["seed"] == 0
        assert not [key for key in record["settings"] if key in ("images", "noise", "trajectories")]


def test_the_page_shows_every_experiment_and_its_figures(judged):
    folder, outcomes = judged
    page = (folder / "report.md").read_text()
    assert re.findall(r"!\[[^]]*\]\(([^)]+)\)", page) == [f"{one.name}.png" for one in outcomes if not one.skipped]
    for outcome in outcomes:
        assert all(finding in page for finding in outcome.findings)
        assert f"## {EXPERIMENTS[outcome.name].title}" in page
    assert "Not run: the classes of the real samples are not known" in page
    assert all(link == "report.md" or (folder / link).is_file() for link in re.findall(r"\]\(([^)]+)\)", page))


def test_a_report_drawn_again_is_the_same_to_the_pixel(judged, tmp_path):
    folder, outcomes = judged
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    for file in [*again.glob("*.png"), again / "report.md"]:
        file.unlink()
    names = redraw(again)
    assert names == [one.name for one in outcomes if not one.skipped]
    for file in folder.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_report_of_points_is_drawn_again_too(tmp_path):
    with point_engine() as engine:
        names = ["reproducibility", "smoothness", "degradation", "round_trip"]
        analyze(engine, tmp_path, quick=True, only=names)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert redraw(tmp_path, only=["smoothness"]) == ["smoothness"]
    assert set(redraw(tmp_path)) == set(names)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_what_cannot_be_drawn_again_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="must be a report's folder, got one without records"):
        redraw(tmp_path)
    with point_engine() as engine:
        analyze(engine, tmp_path, quick=True, only=["reproducibility", "smoothness"])
    with pytest.raises(ValueError, match=r"only must name experiments of the report, .*, got paths"):
        redraw(tmp_path, only=["paths", "smoothness"])
    kept = (tmp_path / "smoothness.npz").read_bytes()
    (tmp_path / "reproducibility.png").unlink()
    for damaged in (b"none", (tmp_path / "reproducibility.npz").read_bytes()[:200]):
        (tmp_path / "smoothness.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match="archive"):
            redraw(tmp_path)
    (tmp_path / "smoothness.npz").unlink()
    with pytest.raises(
        ValueError, match=r"smoothness\.npz must be there .*: run the experiment with --only smoothness"
    ):
        redraw(tmp_path)
    (tmp_path / "smoothness.npz").write_bytes(kept)
    record = json.loads((tmp_path / "smoothness.json").read_text())
    (tmp_path / "smoothness.json").write_text(json.dumps({**record, "settings": {}}))
    with pytest.raises(ValueError, match=r"smoothness\.json and \.npz must be what an experiment wrote"):
        redraw(tmp_path)
    assert not (tmp_path / "reproducibility.png").exists()


def test_distances_are_those_of_the_feature_function(judged):
    """The frontier's row, sampled and measured again by hand."""
    folder, _ = judged
    frontier = Frontier.from_json(folder / "frontier.json")
    row = next(row for row in frontier.rows if row.label == "DDIM 10")
    with picture_engine() as engine:
        labels = [i % len(support.NAMES) for i in range(frontier.samples)]
        images = engine.sample(frontier.samples, cond=labels, sampler="ddim", steps=10, seed=0)
    expected = frechet_distance(Statistics.of(spread_features(images)), Statistics.of(spread_features(REAL)))
    assert row.distance == pytest.approx(expected, rel=1e-9)
    assert row.passes == 10


def test_points_without_classes_or_judge_give_a_report_too(tmp_path):
    with point_engine() as engine:
        outcomes = analyze(engine, tmp_path, quick=True)
    skipped = {outcome.name: outcome.skipped for outcome in outcomes if outcome.skipped}
    assert set(skipped) == {"round_trip_conditioned", "guidance", "guidance_interval"}
    assert all("no classes" in reason for reason in skipped.values())
    page = (tmp_path / "report.md").read_text()
    assert "--judge FOLDER" in page
    assert "| distance" not in page.split("## Step degradation")[1].split("## Interpolation")[0]
    for row in json.loads((tmp_path / "frontier.json").read_text())["rows"]:
        assert row["distance"] is None
        assert row["latency_ms"] > 0


def test_a_flow_is_run_with_the_sampler_of_flows(tmp_path):
    def velocity(x, t, _cond):
        return x * 0.5

    with sf.Engine.from_callable(
        velocity, shape=(3, 4, 4), schedule=sf.NoiseSchedule.flow(), prediction_type="flow"
    ) as engine:
        names = [name for name in EXPERIMENTS if name != "paths"]  # which does not use the model
        outcomes = {one.name: one for one in analyze(engine, tmp_path, quick=True, only=names)}
    assert outcomes["round_trip"].skipped == "a flow has no DDIM inversion"
    for name in ("reproducibility", "degradation", "smoothness", "frontier"):
        rows = json.loads((tmp_path / f"{name}.json").read_text())["rows"]
        assert {row["sampler"] for row in rows} == {"euler"}


def test_an_interrupted_run_keeps_what_is_finished(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with point_engine() as engine:
        analyze(engine, tmp_path, quick=True, only=["reproducibility", "degradation"])
        before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        broken = {
            **EXPERIMENTS,
            "degradation": EXPERIMENTS["degradation"].__class__(
                **{**vars(EXPERIMENTS["degradation"]), "draw": interrupted}
            ),
        }
        monkeypatch.setattr("stepfuse.analysis.report.runner.EXPERIMENTS", broken)
        with pytest.raises(KeyboardInterrupt):
            analyze(engine, tmp_path, quick=True, only=["degradation", "smoothness"], seed=5)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_one_experiment_is_run_again_by_itself(tmp_path):
    with point_engine() as engine:
        analyze(engine, tmp_path, quick=True, only=["reproducibility", "smoothness"])
        kept = (tmp_path / "reproducibility.json").read_bytes()
        [outcome] = analyze(engine, tmp_path, quick=True, only=["smoothness"], seed=7)
    assert outcome.name == "smoothness"
    assert (tmp_path / "reproducibility.json").read_bytes() == kept
    assert json.loads((tmp_path / "smoothness.json").read_text())["seed"] == 7
    page = (tmp_path / "report.md").read_text()
    assert page.index("## Reproducibility") < page.index("## Interpolation")
    assert {"seed 0, quick sizes" in page, "seed 7, quick sizes" in page} == {True}


def test_the_same_seed_gives_the_same_rows(tmp_path):
    with point_engine() as engine:
        for folder in ("a", "b"):
            analyze(engine, tmp_path / folder, quick=True, only=["degradation", "smoothness"], seed=3)
    for name in ("degradation.csv", "smoothness.csv", "smoothness_points.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_two_models_do_not_share_a_report(tmp_path):
    bundles = [support.write_tiny_bundle(tmp_path / name) for name in ("one", "two")]
    with point_engine() as engine:
        analyze(engine, tmp_path / "report", quick=True, only=["smoothness"])
    with pytest.raises(ValueError, match=r"output must be a folder of tiny's own, got .* with a report of model"):
        analyze(bundles[0].path, tmp_path / "report", quick=True, only=["smoothness"])


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "smoothness.json").write_text("{")
    with (
        point_engine() as engine,
        pytest.raises(ValueError, match=r"smoothness\.json must be what an experiment wrote"),
    ):
        analyze(engine, tmp_path, quick=True, only=["reproducibility"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"only": ["magic"]}, "only must name some of reproducibility, .*, got magic"),
        ({"only": []}, "only must name some of .*, got none"),
        ({"seed": -1}, "seed must be between 0 and .*, got -1"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"features": spread_features}, "features and real go together: real must be given, got None"),
        ({"real": REAL}, "features and real go together: features must be given, got None"),
        ({"judge": "fashion"}, r"the judge's images must have the model's shape \(1, 4, 5\), got \(1, 28, 28\)"),
        ({"judge": "fashion", "real": REAL}, "judge brings its own features and real images"),
        ({"features": spread_features, "real": REAL[:, :, :2]}, r"real must be floating point of shape \(n, 1, 4, 5\)"),
        ({"features": spread_features, "real": REAL[:2]}, "more images than features"),
        (
            {"features": spread_features, "real": REAL, "samples": 3},
            "samples must be more than the 3 features, .*: got 3",
        ),
        ({"features": lambda x: np.full((len(x), 1), np.nan), "real": REAL}, "features must be finite, got NaN"),
        ({"features": lambda x: np.ones((len(x), 1)), "real": REAL}, "features must differ between images"),
    ],
)
def test_bad_input_is_refused_before_any_sample_is_generated(tmp_path, arguments, message):
    with picture_engine() as engine:
        with pytest.raises(ValueError, match=message):
            analyze(engine, tmp_path / "report", quick=True, **arguments)
        assert engine.stats()["forwards"] == 0
    assert not (tmp_path / "report").exists()


def test_only_is_a_list(tmp_path):
    with picture_engine() as engine, pytest.raises(TypeError, match="only must be a list of names, got 'frontier'"):
        analyze(engine, tmp_path, only="frontier")


def test_an_embedded_model_brings_its_judge_and_its_student():
    with opened("fashion") as subject:
        assert isinstance(subject.features, Judge)
        assert (subject.name, subject.student_name) == ("fashion", "fashion-8step")
        assert subject.flops == subject.student_flops > 1e8
        assert subject.identity == sf.Bundle.load("fashion").files["denoiser.onnx"]["sha256"]
    with pytest.raises(sf.EngineClosed):
        subject.engine.sample(1, steps=2)


def linear_features(path, weights):
    """An ONNX file that flattens samples and multiplies them by ``weights``."""
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["features"])]
    graph = helper.make_graph(
        nodes,
        "features",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *support.SHAPE])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", weights.shape[1]])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_features_of_an_onnx_file_are_its_output(tmp_path):
    weights = np.random.default_rng(1).normal(size=(20, 6)).astype(np.float32)
    features = feature_function(linear_features(tmp_path / "f.onnx", weights), support.SHAPE)
    np.testing.assert_allclose(features(REAL), REAL.reshape(500, -1) @ weights, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"must take samples of shape \(n, 1, 4, 5\)"):
        features(REAL[:, :, :3])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return support.write_tiny_bundle(tmp_path_factory.mktemp("analyze") / "tiny")


def run(bundle, *arguments):
    return runner.invoke(app, ["analyze", str(bundle.path), *map(str, arguments)])


def test_the_command_line_prints_each_headline_and_where_the_report_is(bundle, tmp_path):
    folder = tmp_path / "report"
    result = run(bundle, "--quick", "--only", "smoothness", "--only", "reproducibility", "--seed", 4, "-o", folder)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert re.match(r"reproducibility +\d+\.\d s  DDIM 50 steps, eta 0, with other seeds", lines[0])
    assert re.match(r"smoothness +\d+\.\d s  Mean MSE between neighbouring frames", lines[1])
    assert lines[2].endswith("written to " + str(folder / "report.md"))
    assert json.loads((folder / "smoothness.json").read_text())["seed"] == 4


def test_the_command_line_measures_by_features_from_files(bundle, tmp_path):
    weights = np.random.default_rng(1).normal(size=(20, 6)).astype(np.float32)
    np.save(tmp_path / "real.npy", REAL)
    files = ["--features", linear_features(tmp_path / "f.onnx", weights), "--real", tmp_path / "real.npy"]
    result = run(bundle, "--quick", "--only", "guidance_interval", *files, "-o", tmp_path)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "guidance_interval.json").read_text())
    assert record["judged_by"] == "the features of f.onnx (6), against 500 real samples"
    assert all(row["distance"] > 0 for row in record["rows"])


def test_the_command_line_names_every_experiment():
    assert all(name in cli_analyze.analyze.__doc__ for name in EXPERIMENTS)


def test_the_command_line_draws_a_report_again(bundle, tmp_path):
    assert run(bundle, "--quick", "--only", "reproducibility", "-o", tmp_path).exit_code == 0
    drawn = (tmp_path / "reproducibility.png").read_bytes()
    (tmp_path / "reproducibility.png").unlink()
    result = runner.invoke(app, ["analyze", "--redraw", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == ["reproducibility", f"1 picture; written to {tmp_path / 'report.md'}"]
    assert (tmp_path / "reproducibility.png").read_bytes() == drawn
    result = run(bundle, "--redraw", tmp_path, "--seed", 0)
    assert result.exit_code == 2
    assert "--redraw measures nothing and goes with --only alone, got model, seed" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "magic"], "--only must name some of"),
        (["--judge", "unknown"], "'unknown' is neither a judge"),
        (["--student", "unknown"], "'unknown' is neither an embedded model"),
        (["--features", "none.onnx"], "--features and --real go together: --real must be given"),
        (["--features", "none.onnx", "--real", "none.npy"], "none.npy: No such file or directory"),
    ],
)
def test_the_command_line_reports_bad_input_in_a_line(bundle, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = run(bundle, "--quick", "-o", "report", *arguments)
    assert result.exit_code == (2 if message.startswith("--") else 1)
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "report").exists()


def test_every_experiment_has_sizes_and_the_quick_ones_are_no_larger():
    assert set(SIZES) == set(EXPERIMENTS)
    for name in SIZES:
        default, quick = SIZES[name]
        assert set(default) == set(quick)
        for key, value in default.items():
            if isinstance(value, int):
                assert quick[key] <= value
    assert all(SIZES[name][1]["samples"] > Judge.load("fashion").feature_count for name in JUDGED)
