"""``stepfuse.bench`` on a tiny bundle: what it measures, its errors of precision, and what it refuses."""

import math

import numpy as np
import onnxruntime
import pytest
import support

import stepfuse as sf
from stepfuse.backends.host import available
from stepfuse.benchmarking import Configuration, benchmark, cold_start, networks, open_loop
from stepfuse.benchmarking.figure import draw_bench
from stepfuse.benchmarking.open_loop import measure_load, poisson
from stepfuse.benchmarking.result import Load

FEW = {"rows": [1, 3], "steps": [2, 4], "seconds": 0.01, "cold_start": False}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return support.write_tiny_bundle(tmp_path_factory.mktemp("bench") / "tiny")


@pytest.fixture(scope="module")
def result(bundle):
    return sf.bench(bundle, backends=["onnxruntime"], threads=[0, 1], rates=[500.0], **FEW)


def test_every_size_of_every_configuration_is_measured(result):
    names = [Configuration("onnxruntime"), Configuration("onnxruntime", "float32", 1)]
    assert result.configurations == names
    assert {case.work for case in result.cases} == {(rows, steps) for rows in (1, 3) for steps in (0, 2, 4)}
    assert {case.forwards for case in result.cases if case.steps == 4} == {4}
    assert {case.forwards for case in result.cases if case.steps == 0} == {2}  # as many as in the first run
    assert len({len(case.seconds) for case in result.cases}) == 1
    assert list(result.costs) == names
    assert [one.configuration for one in result.loads] == names
    assert {one.unanswered + len(one.latencies) for one in result.loads} == {20}
    assert not result.errors
    assert result.facts["versions"]["onnxruntime"] == onnxruntime.__version__
    assert all(one.row > 0 for one in result.costs.values())


def test_what_is_measured_is_what_was_asked_for(bundle, monkeypatch):
    """Forwards of so many rows, one after the other, and unguided runs: counted by the engine and the back end."""
    counted, rows = [], []
    close = sf.Engine.close

    def noted(engine, **how):
        if not engine._service.closed:
            counted.append(engine.stats())
        close(engine, **how)

    forward = benchmark._repeat
    monkeypatch.setattr(sf.Engine, "close", noted)
    monkeypatch.setattr(
        benchmark, "_repeat", lambda f, count, times: (rows.append((count, times)), forward(f, count, times))
    )
    found = sf.bench(bundle, backends=["onnxruntime"], rows=[1, 3], steps=[2], seconds=1e-9, cold_start=False)
    [case] = {len(case.seconds) for case in found.cases}
    assert case == 5
    assert set(rows) == {(1, 2), (3, 2)}
    assert counted[0].samples == 7 * (1 + 3)  # two rounds warm up
    assert counted[0].forwards == 7 * 2 * 2
    assert counted[0].network_passes == 7 * 2 * (1 + 3)


def test_errors_are_those_of_the_numbers_themselves(bundle, monkeypatch, tmp_path):
    pytest.importorskip("openvino")
    monkeypatch.setenv("HOME", str(tmp_path))
    found = sf.bench(bundle, **FEW)
    assert {one.configuration.backend for one in found.errors} == {"openvino"}
    by_name = {one.configuration.precision: one for one in found.errors}
    with sf.Engine.load(bundle) as engine, sf.Engine.load(bundle, backend="openvino") as other:
        exact, own = (one.sample(4, cond=[0, 1, 2, 3], seed=0) for one in (engine, other))
    wanted = np.linalg.norm(own - exact) / np.linalg.norm(exact)
    assert by_name["float32"].images == pytest.approx(wanted, rel=1e-3)
    assert 0 < by_name["float32"].prediction < 1e-5
    for precision in {"bf16", "f16"} & by_name.keys():
        assert by_name[precision].prediction > 100 * by_name["float32"].prediction


def test_a_back_end_that_fails_is_said_and_one_that_is_named_raises(bundle, monkeypatch):
    pytest.importorskip("openvino")
    honest = networks.open_network

    def failing(bundle, cpu):
        if cpu.openvino is not None:
            raise sf.BundleError("an operator is missing")
        return honest(bundle, cpu)

    monkeypatch.setattr(networks, "open_network", failing)
    found = sf.bench(bundle, precisions=["float32"], **FEW)
    assert found.failures == {Configuration("openvino"): "an operator is missing"}
    assert found.configurations == [Configuration("onnxruntime")]
    with pytest.raises(sf.BundleError, match="an operator is missing"):
        sf.bench(bundle, backends=["openvino"], precisions=["float32"], **FEW)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"device": "cuda"}, ValueError, "device must be 'cpu', got 'cuda': a GPU is not measured yet"),
        ({"rows": [0]}, ValueError, "rows must be between 1 and 65536, got 0"),
        ({"rows": []}, ValueError, r"rows must be at least one number, got \[\]"),
        ({"rows": [1, 1]}, ValueError, "rows must be different numbers"),
        ({"rows": [1.5]}, TypeError, "rows must be a whole number, got 1.5"),
        ({"steps": [1001]}, ValueError, "steps must be between 1 and 1000, got 1001"),
        ({"threads": [-1]}, ValueError, "threads must be at least 0, got -1"),
        ({"seconds": 0}, ValueError, "seconds must be above 0 and finite, got 0"),
        ({"rates": [math.inf]}, ValueError, "rates must be above 0 and finite, got inf"),
        ({"backends": ["torch"]}, ValueError, "backends must be some of onnxruntime, openvino, got 'torch'"),
        ({"precisions": ["int4"]}, ValueError, "precisions must be some of float32, bf16, f16, got 'int4'"),
        (
            {"backends": ["onnxruntime"], "precisions": ["bf16"]},
            ValueError,
            "precisions must be some that a back end computes in here, got 'bf16': onnxruntime has float32",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(bundle, arguments, error, message, monkeypatch):
    monkeypatch.setattr(benchmark, "opened", None)
    with pytest.raises(error, match=message):
        sf.bench(bundle, **arguments)


def test_a_back_end_that_is_not_installed_is_an_error_where_it_is_named(bundle, monkeypatch):
    monkeypatch.setattr(available, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"backend 'openvino' is not installed: pip install '.*\[openvino\]'"):
        sf.bench(bundle, backends=["openvino"])
    assert networks.configurations(None, None, [0]) == [Configuration("onnxruntime")]


def test_a_back_end_that_cannot_be_imported_is_a_failure_unless_it_is_named(bundle, monkeypatch):
    def broken(name):
        if name == "openvino":
            raise ImportError("a library is missing")
        return ["float32"]

    monkeypatch.setattr(networks, "installed", lambda: ["onnxruntime", "openvino"])
    monkeypatch.setattr(networks, "precisions_of", broken)
    assert networks.configurations(None, None, [0]) == [Configuration("onnxruntime"), Configuration("openvino")]
    with pytest.raises(ImportError, match="a library is missing"):
        networks.configurations(["openvino"], None, [0])


def test_arrivals_are_a_poisson_process():
    at = np.array(poisson(20.0, 20_000))
    gaps = np.diff(at, prepend=0)
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.03)  # three standard errors of an exponential's mean: 2 %
    assert gaps.std() == pytest.approx(1 / 20, rel=0.05)
    np.testing.assert_allclose(poisson(40.0, 50), np.array(poisson(20.0, 50)) / 2)


def test_a_latency_begins_when_the_request_arrives():
    """All are there at once, and each takes a forward of its own."""
    name = Configuration("onnxruntime")
    with support.make_engine(max_rows=1) as engine:
        found = measure_load(engine, name, 100.0, [0.0] * 6, 3, patience=60.0)
        assert engine.stats().samples == 6
        assert engine.stats().network_passes == 18
    assert found.unanswered == 0
    assert found.images_per_second == pytest.approx(6 / max(found.latencies))
    assert min(found.latencies) > 0


def test_what_delays_a_submission_is_its_request_s_wait(monkeypatch):
    now = [0.0]

    class Clock:
        @staticmethod
        def perf_counter():
            return now[0]

        @staticmethod
        def sleep(seconds):
            now[0] += seconds + 0.5  # another program had the processor

    monkeypatch.setattr(open_loop, "time", Clock)
    with support.make_engine() as engine:
        found = measure_load(engine, Configuration("onnxruntime"), 9.0, [3.0], 1, patience=60.0)
    assert list(found.latencies) == [0.5]


def test_a_request_that_waits_too_long_is_given_up(monkeypatch):
    import threading

    go = threading.Event()

    def slow(x, t, cond):
        go.wait(30)
        return support.rowwise(x, t, cond)

    with support.make_engine(slow, max_rows=1) as engine:
        found = measure_load(engine, Configuration("onnxruntime"), 9.0, [0.0, 0.01], 1, patience=0.05)
        go.set()
    assert (found.unanswered, list(found.latencies), found.images_per_second) == (2, [], 0.0)


def test_requests_that_find_the_queue_full_are_counted():
    serving = sf.Serving(max_rows=1, max_running=1, max_queue=1)
    with support.make_engine(serving=serving) as engine:
        found = measure_load(engine, Configuration("onnxruntime"), 9.0, [0.0] * 50, 20, patience=60.0)
        assert found.unanswered == engine.stats().queue_refusals > 0
    assert len(found.latencies) == 50 - found.unanswered


def test_a_network_that_fails_under_load_is_an_error():
    def broken(x, t, cond):
        raise RuntimeError("no memory")

    with support.make_engine(broken) as engine, pytest.raises(RuntimeError, match="no memory"):
        measure_load(engine, Configuration("onnxruntime"), 9.0, [0.0], 1, patience=60.0)


def test_a_fresh_process_is_timed_and_its_memory_is_its_own(bundle):
    held = np.ones(100_000_000, np.float32)  # 400 MB of this process, which are not the child's
    [found], failures = cold_start.measure_starts(bundle, [Configuration("onnxruntime", threads=1)], processes=1)
    assert failures == {}
    assert held[-1] == 1
    assert 0.05 < found.seconds[0] < 60
    assert 20e6 < found.peak_bytes[0] < 350e6


def test_a_fresh_process_that_fails_says_why(bundle):
    wrong = Configuration("onnxruntime", "bf16")
    found, failures = cold_start.measure_starts(bundle, [wrong], processes=2)
    assert found == []
    assert "ended with 1: ValueError: precision must be float32 for ONNX Runtime" in failures[wrong]


def test_a_pipeline_is_measured_by_its_denoiser(tmp_path):
    import handmade

    pipeline = handmade.write_bundle(tmp_path / "pipeline")
    found = sf.bench(pipeline, backends=["onnxruntime"], rows=[1], steps=[1], seconds=0.01, cold_start=False)
    assert found.model == sf.Bundle.load(pipeline.path).name
    assert {case.forwards for case in found.cases} == {1}


def test_the_figure_shows_every_configuration_and_nothing_covers_another(result):
    pytest.importorskip("matplotlib")
    import figure_overlaps

    figure = draw_bench(result)
    left, right = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(map(str, result.configurations))
    rows, milliseconds = left.get_lines()[0].get_data()
    assert list(rows) == [1, 3]
    assert milliseconds[1] == pytest.approx(1e3 * result.case(result.configurations[0], 3, 2).median / 3)
    assert len(right.get_lines()) == 2 * len(result.loads)
    assert figure_overlaps.overlaps(figure) == []


def test_a_load_without_answers_leaves_no_line(result):
    pytest.importorskip("matplotlib")
    from dataclasses import replace

    unanswered = [Load(result.configurations[0], 9.0, 2, [], 20, 0.0)]
    _, right = draw_bench(replace(result, loads=unanswered)).axes
    assert not any(len(line.get_xdata()) for line in right.get_lines())
