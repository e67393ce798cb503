"""``make gpu-check`` as far as it needs no GPU: it says that there is none, resumes, merges; its parts are there."""

import argparse
import contextlib
import importlib.util
import json
import py_compile
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "gpu"


@pytest.fixture
def check(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("gpu_check", FOLDER / "check.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", module)
    spec.loader.exec_module(module)
    for name in ("BUILD", "SITE", "CUBINS", "STATE"):
        monkeypatch.setattr(module, name, tmp_path / "build" / name.lower())
    return module


@pytest.mark.parametrize("stage", [(), ("--stage", "kernels")])
def test_without_a_gpu_every_stage_says_so_and_the_status_is_three(stage):
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, str(FOLDER / "check.py"), *stage]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 3, done.stderr
    named = [line.split(":")[0] for line in done.stdout.splitlines()]
    assert named == ([stage[1]] if stage else ["kernels", "graphs", "compare", "numerics"])
    assert all("not run: " in line for line in done.stdout.splitlines())


def test_everything_that_a_stage_runs_is_there_and_compiles(check):
    for parts in check.STAGES.values():
        assert sum(max(part.seconds for part in group) for group in check.at_once(parts)) <= 600
        for part in parts:
            files = [word for word in part.command if word.startswith(("tests/", "benchmarks/"))]
            assert files or part.name == "cubins"
            assert all((ROOT / file).exists() for file in files)
            assert part.expected < part.seconds
    run = {word for parts in check.STAGES.values() for part in parts for word in part.command}
    tests = {
        str(file.relative_to(ROOT))
        for folder in ("gpu", "kernels")
        for file in (ROOT / "tests" / folder).glob("test_*.py")
    }
    assert tests - run == {"tests/kernels/test_aot.py"}
    assert check.expected_seconds() <= 480
    for file in FOLDER.glob("*.py"):
        py_compile.compile(str(file), doraise=True)


def test_the_makefile_passes_on_what_it_is_given():
    words = ("STAGE=graphs", "RESULTS=out", "WHEELS=lie", "PYTHON=python")
    done = subprocess.run(["make", "-n", "-C", str(ROOT), "gpu-check", *words], capture_output=True, text=True)
    command = "python benchmarks/gpu/check.py --stage graphs --output out --wheels lie"
    assert command in done.stdout.splitlines(), done.stderr


def test_a_gpu_s_name_is_a_file_s(check):
    assert check.slug("NVIDIA GeForce RTX 4090 (D)") == "nvidia-geforce-rtx-4090-d"


def test_what_pytest_says_is_counted(check):
    line = "3 failed, 120 passed, 2 skipped, 1 error in 3.4s"
    assert check.counts(line) == {"failed": 3, "passed": 120, "skipped": 2, "error": 1}


def test_a_log_keeps_its_end(check):
    assert check.shortened("a\nb\nc\n", 2) == "(1 lines before)\nb\nc"
    assert check.shortened("a\n", 2) == "a"


def test_a_part_that_takes_too_long_is_stopped_and_its_words_kept(check):
    script = "print('begun', flush=True); import time; time.sleep(60)"
    status, said = check.run(("-c", script), 3)
    assert status == 124
    assert said == "begun\n\nstopped after 3 s"


def test_tests_that_are_all_skipped_have_not_passed(check):
    part = check.Part("tests", ("-c", "print('5 skipped in 0.1s')", "pytest"), 60, 1)
    found = check.run_part(part, 90, "v")
    assert (found["status"], found["tests"]) == (1, {"skipped": 5})
    assert found["log"].endswith("no test ran")


def test_tests_that_need_what_need_not_be_there_may_all_be_skipped(check):
    for script, status in (("print('5 skipped in 0.1s')", 0), ("raise SystemExit(1)", 1)):
        part = check.Part("tests", ("-c", script, "pytest"), 60, 1, may_skip=True)
        assert check.run_part(part, 90, "v")["status"] == status


def test_what_a_benchmark_has_written_before_it_was_stopped_is_kept(check):
    script = "import pathlib, sys, time\n"
    script += "pathlib.Path(sys.argv[2], 'b.json').write_text('{\"targets\": []}'); time.sleep(60)"
    (check.BUILD / "results").mkdir(parents=True)
    found = check.run_part(check.Part("b.py", ("-c", script), 4, 1, writes="b"), 90, "v")
    assert (found["status"], found["report"]) == (124, {"targets": []})
    script = script.replace("[]}", "[")
    found = check.run_part(check.Part("b.py", ("-c", script), 4, 1, writes="b"), 90, "v")
    assert (found["status"], found["report"]) == (124, None)


def test_parts_run_beside_the_one_before_and_alone_if_they_fail_there(check, monkeypatch):
    parts = [check.Part(name, ("-c", ""), 9, 1, beside=name != "a") for name in "abc"]
    assert check.at_once([*parts, parts[0]]) == [parts, [parts[0]]]
    at_once, ran = threading.Barrier(3), []

    def run_part(part, cc, version):
        ran.append(part.name)
        if len(ran) <= 3:
            at_once.wait(10)
            return finding(status=int(part.name == "b"))
        return finding()

    monkeypatch.setattr(check, "run_part", run_part)
    found = list(check.run_parts(parts, 90, "v"))
    assert [(part.name, one["status"]) for part, one in found] == [("a", 0), ("b", 0), ("c", 0)]
    assert sorted(ran[:3]) == ["a", "b", "c"]
    assert ran[3:] == ["b"]


def target(claim, measured, *, wanted=1.0, at_least=True):
    met = measured >= wanted if at_least else measured <= wanted
    return {"claim": claim, "unit": "x", "wanted": wanted, "measured": measured, "at_least": at_least, "met": met}


def test_a_promise_is_as_good_as_its_worst_case_and_needs_them_all(check):
    promise = check.Promise("never slower", 2)
    cases = [target("never slower: a", 3.0), target("never slower: b", 1.5), target("another", 0.0)]
    kept = {"promise": "never slower", "target": 1.0, "unit": "x", "value": 1.5, "met": True, "cases": [2, 2]}
    assert check.kept(promise, cases) == kept
    assert check.kept(promise, cases[:1]) == {**kept, "value": 3.0, "met": False, "cases": [1, 2]}
    assert check.kept(promise, [cases[0], target("never slower: c", 0.5)])["met"] is False
    at_most = [target("waits: a", 2, at_least=False), target("waits: b", 0, at_least=False)]
    assert check.kept(check.Promise("waits", 2), at_most)["value"] == 2
    assert check.kept(promise, [])["met"] is None


def test_every_promise_of_the_design_is_an_entry_and_some_benchmark_s_claim(check, tmp_path):
    written = json.loads(check.write(tmp_path, check.merged("GPU", {}, "kernels", {})).read_text())
    assert list(written) == ["gpu", "promises", "targets", "stages"]
    assert [(one["promise"], one["met"]) for one in written["promises"]] == [
        (one.claims, None) for one in check.PROMISES
    ]
    sources = "".join(file.read_text() for file in FOLDER.glob("*.py") if file.name != "check.py")
    for promise in check.PROMISES:
        assert re.search(rf'f?"{re.escape(promise.claims)}', sources), promise


def finding(status=0, targets=()):
    return {"version": "v", "status": status, "seconds": 1.0, "log": "said", "report": {"targets": list(targets)}}


def test_a_stage_takes_the_place_of_what_was_found_before(check, tmp_path):
    one = target("c", 2.0)
    before = check.merged("GPU", {}, "kernels", {"step.py": finding(targets=[one])})
    document = check.merged("GPU", before, "graphs", {"tests": finding(status=1)})
    document = check.merged("GPU", document, "graphs", {"tests": finding()})
    path = check.write(tmp_path, document)
    assert path.name == "gpu-gpu.json"
    written = json.loads(path.read_text())
    assert list(written["stages"]) == ["kernels", "graphs"]
    assert written["stages"]["graphs"]["tests"]["status"] == 0
    assert written["targets"] == [{"part": "step.py", **one}]
    assert "log" not in written["stages"]["kernels"]["step.py"]
    assert "== kernels: step.py: status 0, 1.0 s\nsaid" in path.with_suffix(".log").read_text()


def test_what_is_done_is_not_done_again(check, monkeypatch, tmp_path, capsys):
    ran, fails = [], ["step.py"]

    def run_part(part, cc, version):
        assert cc == 90
        ran.append(part.name)
        return finding(status=int(part.name in fails)) | {"version": version}

    def build(wheels, version):
        check.STATE.mkdir(parents=True, exist_ok=True)
        (check.STATE / "built").write_text(version)
        ran.append("build")
        return 0, ""

    monkeypatch.setattr(check, "find_gpu", lambda: ("A GPU", 90))
    monkeypatch.setattr(check, "run_part", run_part)
    monkeypatch.setattr(check, "build", build)
    monkeypatch.setattr(check, "fingerprint", lambda: "one")
    monkeypatch.setattr(check, "NEEDED", ("json", "no_such_package"))
    kernels, compare = ([part.name for part in check.STAGES[stage]] for stage in ("kernels", "compare"))
    assert check.check(["kernels"], tmp_path, tmp_path) == 1
    assert ran[0] == "build"
    assert sorted(ran[1:]) == sorted(kernels)
    assert ran[-1] == "step.py"
    fails.clear()
    ran.clear()
    assert check.check(["kernels"], tmp_path, tmp_path) == 0  # what failed is done again, and passes
    assert ran == ["step.py"]
    assert check.check(["compare"], tmp_path, tmp_path) == 0
    assert ran[1:] == compare
    assert (
        f"without no_such_package some parts fail or are left out: put wheels into {tmp_path}"
        in capsys.readouterr().out
    )
    written = json.loads((tmp_path / "gpu-a-gpu.json").read_text())
    assert written["missing"] == ["no_such_package"]
    stages = written["stages"]
    assert {stage: len(parts) for stage, parts in stages.items()} == {"kernels": len(kernels), "compare": len(compare)}
    monkeypatch.setattr(check, "fingerprint", lambda: "two")
    check.check(["compare"], tmp_path, tmp_path)
    assert ran[-1 - len(compare) :] == ["build", *compare]


def test_what_does_not_fit_the_time_is_skipped_and_runs_the_next_time(check, monkeypatch, tmp_path, capsys):
    now, ran, limits = [0.0], [], {}

    def run_part(part, cc, version):
        ran.append(part.name)
        limits[part.name] = part.seconds
        now[0] += part.expected
        return finding() | {"version": version}

    monkeypatch.setattr(check.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(check, "find_gpu", lambda: ("A GPU", 90))
    monkeypatch.setattr(check, "run_part", run_part)
    monkeypatch.setattr(check, "build", lambda wheels, version: (check.STATE.mkdir(parents=True), (0, ""))[1])
    monkeypatch.setattr(check, "fingerprint", lambda: "one")
    check.STATE.parent.mkdir(parents=True, exist_ok=True)
    stages = list(check.STAGES)
    assert check.check(stages, tmp_path, tmp_path, seconds=100) == 0
    done = set(ran)
    assert {"cubins", "tests/gpu: kernels", "step.py"} <= done
    assert "diffusers_loop.py" not in done
    assert "skipped: diffusers_loop.py: " in capsys.readouterr().out
    assert max(limits.values()) <= 100
    assert limits["step.py"] == 60  # of 100 seconds 40 are gone
    skipped = json.loads((tmp_path / "gpu-a-gpu.json").read_text())["skipped"]
    everything = {part.name for parts in check.STAGES.values() for part in parts}
    assert {line.partition(": ")[0] for line in skipped} >= {"diffusers_loop.py", "serving.py"}
    assert len(skipped) + len(done) == len(everything)
    ran.clear()
    (check.STATE / "built").write_text("one")
    assert check.check(stages, tmp_path, tmp_path, seconds=10_000) == 0
    assert set(ran) == everything - done
    assert json.loads((tmp_path / "gpu-a-gpu.json").read_text())["skipped"] == []


def test_sources_that_change_are_noticed(check, tmp_path):
    for folder in ("csrc", "engine", "kernels", "export", "tests", "benchmarks/gpu"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "kernels/a.py"):
        (tmp_path / name).write_text("1")
    before = check.fingerprint(tmp_path)
    assert check.fingerprint(tmp_path) == before
    (tmp_path / "kernels" / "a.py").write_text("2")
    assert check.fingerprint(tmp_path) != before


@pytest.fixture
def benchmark(monkeypatch):
    """``benchmark(name)``: a module of benchmarks/gpu, which this process forgets again."""
    pytest.importorskip("torch")
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(FOLDER.parent) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_clocks_are_read_by_name(benchmark):
    timing = benchmark("timing")
    assert timing.parse_fields(("a", "b"), "580.1, 1980 MHz") == {"a": "580.1", "b": "1980 MHz"}
    assert timing.parse_fields(("a", "b"), "no devices were found") == {}


def test_clocks_are_summed_up_while_work_goes_on(benchmark):
    timing = benchmark("timing")
    lines = ["1980, 3201, 40, 300.5", "1200, 3201, 42, [N/A]", "no devices", ""]
    found = timing.summary_of(timing.ClockSamples.FIELDS, lines)
    assert found["clocks.sm"] == {"least": 1200.0, "median": 1590.0, "most": 1980.0}
    assert found["power.draw"] == {"least": 300.5, "median": 300.5, "most": 300.5}
    assert timing.summary_of(("a",), []) == {}


class Device:
    """A GPU's queue: ``now`` is the host's time, ``busy`` when the device has done what it was given."""

    def __init__(self):
        self.now = self.busy = 0.0
        self.slept = []

    def run(self, seconds):
        self.busy = max(self.busy, self.now) + seconds

    def sleep(self, cycles):
        self.slept.append(cycles / 2e9)
        self.run(cycles / 2e9)

    def event(self, enable_timing):
        device = self

        class Event:
            def record(self):
                self.at = max(device.busy, device.now)

            def synchronize(self):
                device.now = max(device.now, self.at)

            def elapsed_time(self, last):
                return 1e3 * (last.at - self.at)

        return Event()


@pytest.mark.parametrize("launch", [1e-6, 139e-6, 20e-3])
def test_the_device_does_not_wait_for_the_host_in_what_is_timed(benchmark, monkeypatch, launch):
    timing, device = benchmark("timing"), Device()
    monkeypatch.setattr(timing.torch.cuda, "Event", device.event)
    monkeypatch.setattr(timing.torch.cuda, "_sleep", device.sleep, raising=False)
    monkeypatch.setattr(timing.torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(timing.torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: device.now)

    def work():
        for _ in range(3):
            device.now += launch
            device.run(10e-6)

    clock = timing.Clock(flush=False)
    assert clock.device_seconds(work) == pytest.approx(30e-6)
    slept = len(device.slept)
    assert clock.device_seconds(work) == pytest.approx(30e-6)
    assert len(device.slept) == slept + 1  # how long it has to sleep is known now


def test_work_that_waits_for_the_device_is_timed_as_it_is(benchmark, monkeypatch):
    timing, device = benchmark("timing"), Device()
    monkeypatch.setattr(timing.torch.cuda, "Event", device.event)
    monkeypatch.setattr(timing.torch.cuda, "_sleep", device.sleep, raising=False)
    monkeypatch.setattr(timing.torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(timing.torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: device.now)

    def work():
        device.now += 100e-6
        device.run(10e-6)
        device.now = max(device.now, device.busy)

    assert timing.Clock(flush=False).device_seconds(work) == pytest.approx(110e-6)


def test_contenders_are_timed_alternately(benchmark, monkeypatch):
    timing = benchmark("timing")
    monkeypatch.setattr(timing.torch.cuda, "synchronize", lambda: None)
    done = []
    contenders = {"one": lambda: done.append("one"), "ten": lambda: done.append("ten")}
    order = []

    def seconds(work):
        order.append(work)
        return 10.0

    samples = timing.in_turn(contenders, seconds, rounds=20, calls={"ten": 10})
    assert samples == {"one": [10.0] * 20, "ten": [1.0] * 20}
    assert done == ["one"] * 3 + ["ten"] * 3
    assert {tuple(order[i : i + 2]) for i in range(0, 40, 2)} == {
        tuple(contenders.values()),
        tuple(contenders.values())[::-1],
    }
    assert timing.in_turn(contenders, seconds, rounds=20, budget=0.0)["one"] == [10.0] * 3
    assert timing.in_turn(contenders, seconds, rounds=2, budget=0.0)["one"] == [10.0] * 2


def test_a_case_that_fails_leaves_the_others_in_a_file_that_is_there_already(benchmark, monkeypatch, tmp_path, capsys):
    common = benchmark("common")
    monkeypatch.setattr(common, "machine", dict)
    monkeypatch.setattr(common, "load", lambda: None)
    monkeypatch.setattr(common.torch.cuda, "empty_cache", lambda: None)
    given = argparse.Namespace(quick=False, output=tmp_path, seconds=60.0)
    report = common.GpuReport("gpu-some", given, {}, ())

    def measured():
        report.add("first", {"ours": [1.0], "theirs": [2.0]}, "theirs")
        report.never_slower("theirs", "first", 1.01)

    def fails():
        with report.noting("a contender"):
            importlib.import_module("no_such_module")
        raise RuntimeError("out of\nmemory")

    report.attempt("first", measured)
    written = json.loads((tmp_path / "gpu-some.json").read_text())
    assert [result["contender"] for result in written["results"]] == ["ours", "theirs"]
    assert written["remarks"] == ["no gain over theirs: first, 1.010 times as fast"]
    report.attempt("second", fails)
    report._until = 0.0
    report.attempt("third", measured)
    assert report.publish() == 1
    written = json.loads((tmp_path / "gpu-some.json").read_text())
    assert written["failed"] == ["second: RuntimeError: out of; memory"]
    assert written["skipped"] == ["a contender: no_such_module is not installed", "third: no time was left"]
    assert written["targets"][0]["met"] is True


def test_launches_and_waits_are_read_from_a_trace(benchmark):
    traces = benchmark("traces")

    def event(cat, name, ts, dur=1.0, launch=0):
        return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "args": {"correlation": launch}}

    events = [
        {"ph": "M", "name": "process_name"},
        event("cuda_sync", "Context Sync", 5),
        event("user_annotation", "traced work", 10, 50),
        event("gpu_user_annotation", "traced work", 70, 50),
        event("kernel", "fused_step_kernel", 80, launch=3),
        event("kernel", "fused_step_kernel", 30, launch=2),
        event("cuda_driver", "cuLaunchKernel", 20, launch=2),
        event("cuda_sync", "Event Sync", 40, 7),
        event("cuda_sync", "Stream Wait Event", 41),
        event("cuda_runtime", "cudaDeviceSynchronize", 65),
        event("cuda_sync", "Context Sync", 65),
    ]
    trace = traces.trace_of(events)
    assert [kernel.launch for kernel in trace.kernels_named("fused_step")] == [2, 3]
    assert [(call.name, call.began) for call in trace.calls] == [("cuLaunchKernel", 20.0)]
    assert trace.waits == [traces.Event("Event Sync", 0, 40.0, 47.0)]
    with pytest.raises(ValueError, match="must have 'traced work' once, got it 0 times"):
        traces.trace_of(events[3:])


def test_mixed_requests_are_batched_by_what_diffusers_can_draw_together(benchmark):
    pytest.importorskip("stepfuse.backends.cuda.torch")
    serving = benchmark("serving")
    for subject in serving.SUBJECTS:
        asked = serving.mixed(subject)
        assert len(asked) == 64
        assert {one.seed for one in asked} == set(range(64))
        assert {(one.steps, one.scale) for one in asked[:8]} == {(one.steps, one.scale) for one in asked}
        groups = serving.batches(asked)
        assert sorted(one.seed for group in groups for one in group) == list(range(64))
        for group in groups:
            assert len({(one.steps, one.scale != 1) for one in group}) == 1
            assert len(group) * (1 + (group[0].scale != 1)) <= serving.ROWS
        assert len(groups) == 8
