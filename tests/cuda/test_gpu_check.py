"""``make gpu-check`` as far as it needs no GPU: it says that there is none, resumes, merges; its parts are there."""

import importlib.util
import json
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert named == ([stage[1]] if stage else ["kernels", "graphs", "compare"])
    assert all("not run: " in line for line in done.stdout.splitlines())


def test_everything_that_a_stage_runs_is_there_and_compiles(check):
    for parts in check.STAGES.values():
        assert sum(part.seconds for part in parts) <= 600
        for part in parts:
            files = [word for word in part.command if word.startswith(("tests/", "benchmarks/"))]
            assert files or part.name == "cubins"
            assert all((ROOT / file).exists() for file in files)
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
    part = check.Part("tests", ("-c", "print('5 skipped in 0.1s')", "pytest"), 60)
    found = check.run_part(part, 90, "v")
    assert (found["status"], found["tests"]) == (1, {"skipped": 5})
    assert found["log"].endswith("no test ran")


def finding(status=0, targets=()):
    return {"version": "v", "status": status, "seconds": 1.0, "log": "said", "report": {"targets": list(targets)}}


def test_a_stage_takes_the_place_of_what_was_found_before(check, tmp_path):
    target = {"claim": "c", "met": True}
    before = check.merged("GPU", {}, "kernels", {"step.py": finding(targets=[target])})
    document = check.merged("GPU", before, "graphs", {"tests": finding(status=1)})
    document = check.merged("GPU", document, "graphs", {"tests": finding()})
    path = check.write(tmp_path, document)
    assert path.name == "gpu-gpu.json"
    written = json.loads(path.read_text())
    assert list(written["stages"]) == ["kernels", "graphs"]
    assert written["stages"]["graphs"]["tests"]["status"] == 0
    assert written["targets"] == [{"part": "step.py", **target}]
    assert "log" not in written["stages"]["kernels"]["step.py"]
    assert "== kernels: step.py: status 0, 1.0 s\nsaid" in path.with_suffix(".log").read_text()


def test_what_is_done_is_not_done_again(check, monkeypatch, tmp_path, capsys):
    ran = []

    def run_part(part, cc, version):
        assert cc == 90
        ran.append(part.name)
        return finding(status=int(part.name == "tests/kernels" and len(ran) < 5)) | {"version": version}

    def build(wheels, version):
        check.STATE.mkdir(parents=True, exist_ok=True)
        (check.STATE / "built").write_text(version)
        ran.append("build")
        return 0, ""

    monkeypatch.setattr(check, "find_gpu", lambda: ("A GPU", 90))
    monkeypatch.setattr(check, "run_part", run_part)
    monkeypatch.setattr(check, "build", build)
    monkeypatch.setattr(check, "fingerprint", lambda: "one")
    kernels = [part.name for part in check.STAGES["kernels"]]
    assert check.check(["kernels"], tmp_path, tmp_path) == 1
    assert ran == ["build", *kernels]
    assert check.check(["kernels"], tmp_path, tmp_path) == 0  # what failed is done again, and passes
    assert ran == ["build", *kernels, "tests/kernels"]
    assert check.check(["compare"], tmp_path, tmp_path) == 0
    assert ran[-1:] == ["diffusers_loop.py"]
    stages = json.loads((tmp_path / "gpu-a-gpu.json").read_text())["stages"]
    assert {stage: len(parts) for stage, parts in stages.items()} == {"kernels": 4, "compare": 1}
    monkeypatch.setattr(check, "fingerprint", lambda: "two")
    check.check(["compare"], tmp_path, tmp_path)
    assert ran[-2:] == ["build", "diffusers_loop.py"]


def test_sources_that_change_are_noticed(check, tmp_path):
    for folder in ("csrc", "engine", "kernels", "export", "tests", "benchmarks/gpu"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "kernels/a.py"):
        (tmp_path / name).write_text("1")
    before = check.fingerprint(tmp_path)
    assert check.fingerprint(tmp_path) == before
    (tmp_path / "kernels" / "a.py").write_text("2")
    assert check.fingerprint(tmp_path) != before


def test_clocks_are_read_by_name():
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("gpu_timing", FOLDER / "timing.py")
    timing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(timing)
    assert timing.parse_fields(("a", "b"), "580.1, 1980 MHz") == {"a": "580.1", "b": "1980 MHz"}
    assert timing.parse_fields(("a", "b"), "no devices were found") == {}


def test_contenders_are_timed_in_turn(monkeypatch):
    torch = pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("gpu_timing", FOLDER / "timing.py")
    timing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(timing)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
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
