"""Builds, tests and measures what needs an NVIDIA GPU, stage by stage, and writes one JSON and one log.

    make gpu-check                                  # all stages
    make gpu-check STAGE=kernels                    # one; what the others found is kept
    make gpu-check RESULTS=folder WHEELS=folder     # where results go, and where packages that are missing here lie
    python benchmarks/gpu/check.py --seconds 300    # without make, and within five minutes

Stages are ``kernels`` (every compiled step against the CPU's bits; bandwidth, latency, layouts), ``graphs`` (a torch
module's trajectories and the engine's loop: the CPU's images, launches and waits, what goes wrong; what all but the
network costs), ``compare`` (diffusers' loop around the same weights, which needs diffusers) and ``numerics`` (the tests
of the interpreted kernels, compiled). What is worth most comes first, and all of it ends within ``--seconds``, eight
minutes unless given: a part that would not fit what is left is skipped, with a word, and runs in the next call. A part
that is done and whose sources are the same is not done again, unless ``--again``. Each part is a process of its own,
and a benchmark writes its report after every case: what fails or is stopped takes nothing else with it.

The JSON has:

- ``gpu``, its name, ``missing``, packages that were not there, and ``skipped``, what there was no time for;
- ``promises``, those of the design, each with ``promise``, ``target``, ``unit``, ``value`` (the worst case's),
  ``cases`` (measured, and how many there should be) and ``met`` (null: nothing was measured);
- ``targets``, the cases one by one: ``part``, ``claim``, ``unit``, ``wanted``, ``measured``, ``at_least``, ``met``;
- ``stages``, by stage and part: ``status``, ``seconds``, and ``tests`` (how many passed, failed, were skipped) or a
  benchmark's ``report`` (machine, versions, configuration, results, remarks, skipped, failed).

Exit status: 0 if all tests passed, 1 if not, 2 if the build failed, 3 if there is no GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "gpu"
SITE, CUBINS, STATE = BUILD / "site", BUILD / "cubins", BUILD / "state"

NO_GPU, NOT_BUILT, FAILED = 3, 2, 1
NEEDED = ("pytest", "hypothesis", "ml_dtypes", "onnx", "onnxruntime", "tokenizers", "diffusers")
LOG_LINES = 60  # of each part in the log that is kept


@dataclass(frozen=True)
class Part:
    """A command of a stage.

    Attributes:
        name: What the JSON and the log call it.
        command: After the interpreter.
        seconds: It is stopped after so long.
        expected: Seconds that it is thought to take.
        writes: Name of the JSON that it leaves, if it is a benchmark.
        may_skip: Whether all of its tests may be skipped: what they need need not be there.
        beside: Whether it runs at the same time as the part before. If it fails then, it is done again alone.
    """

    name: str
    command: tuple[str, ...]
    seconds: int
    expected: int
    writes: str | None = None
    may_skip: bool = False
    beside: bool = False


@dataclass(frozen=True)
class Promise:
    """What the design promises of the H200, by the beginning of the claims that prove it.

    Attributes:
        claims: How they begin.
        cases: How many are to be measured at least.
    """

    claims: str
    cases: int


PROMISES = (
    Promise("step, share of the copy's bandwidth", 6),
    Promise("step in a graph at", 1),
    Promise("step in a graph against diffusers' blend, step and cat", 1),
    Promise("trajectory, times its forwards alone", 6),
    Promise("launches of a trajectory", 6),
    Promise("waits in a trajectory", 6),
    Promise("images against the CPU's", 2),
    Promise("against diffusers' loop", 1),
    Promise("against torch.compile reduce-overhead", 1),
    Promise("never slower than", 18),
)


def _tests(name: str, seconds: int, expected: int, *files: str, may_skip: bool = False, beside: bool = False) -> Part:
    # -P: the root's folders kernels/ and export/ must not shadow packages of those names.
    options = ("-q", "-rs", "-p", "no:cacheprovider", "-o", f"faulthandler_timeout={seconds // 2}")
    paths = tuple(f"tests/{file}.py" for file in files)
    return Part(name, ("-P", "-m", "pytest", *options, *paths), seconds, expected, None, may_skip, beside)


def _benchmark(file: str, writes: str, seconds: int, expected: int) -> Part:
    return Part(f"{file}.py", (f"benchmarks/gpu/{file}.py",), seconds, expected, writes)


BUILD_SECONDS = 40  # expected
ALL_SECONDS = 480.0  # that all of it may take, the build included

#: Of the tests in tests/kernels all but test_aot.py: it compiles for other GPUs, which needs none, and takes minutes.
KERNEL_TESTS = tuple(
    f"kernels/test_{name}" for name in ("arguments", "columns", "jit", "keep", "renorm", "torch_op", "tuning")
)

STAGES: dict[str, tuple[Part, ...]] = {
    "kernels": (
        Part("cubins", ("-P", "-m", "stepfuse.kernels.aot", "-o", "{cubins}", "--arch", "{cc}"), 120, 15),
        _tests("tests/gpu: kernels", 120, 25, "gpu/test_driver", "gpu/test_cubins", "gpu/test_kernels"),
        _benchmark("step", "gpu-step", 90, 35),
    ),
    "graphs": (
        _tests("tests/gpu: trajectories", 100, 25, "gpu/test_trajectories"),
        _tests("tests/gpu: engine", 100, 30, "gpu/test_engine"),
        _tests("tests/gpu: onnxruntime", 60, 5, "gpu/test_onnxruntime", may_skip=True),
        _tests("tests/gpu: tensorrt", 60, 5, "gpu/test_tensorrt", may_skip=True),
        _benchmark("trajectories", "gpu-trajectories", 120, 55),
        _benchmark("serving", "gpu-serving", 160, 85),
    ),
    "compare": (
        _tests("tests/gpu: compile(pipe)", 90, 15, "gpu/test_compile", may_skip=True),
        _benchmark("diffusers_loop", "gpu-diffusers", 180, 100),
    ),
    "numerics": (
        _tests("tests/kernels: step", 180, 45, "kernels/test_step"),
        _tests("tests/kernels: reductions", 180, 45, "kernels/test_adapt", beside=True),
        _tests("tests/kernels: others", 180, 45, *KERNEL_TESTS, beside=True),
    ),
}


def at_once(parts: Sequence[Part]) -> list[list[Part]]:
    """Parts of a stage in order, those together that run at the same time."""
    groups: list[list[Part]] = []
    for part in parts:
        if part.beside:
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups


def expected_seconds() -> int:
    """Of all stages, the build included; an estimate."""
    groups = [group for parts in STAGES.values() for group in at_once(parts)]
    return BUILD_SECONDS + sum(max(part.expected for part in group) for group in groups)


def find_gpu() -> tuple[str, int] | str:
    """Name and compute capability (times ten) of the GPU that torch sees, or why there is none."""
    script = (
        "import torch; p = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None;"
        "print(f'{p.name}\\n{10 * p.major + p.minor}' if p else '')"
    )
    found = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True)
    if found.returncode != 0:
        lines = found.stderr.strip().splitlines()
        return f"torch cannot be asked for a GPU: {lines[-1] if lines else 'it ended without a word'}"
    lines = found.stdout.split("\n")
    return (lines[0], int(lines[1])) if lines[0] else "no GPU: torch.cuda.is_available() is False"


def missing() -> list[str]:
    """Packages that tests or benchmarks import, and cannot."""
    script = "import importlib.util, sys; print(*(one for one in sys.argv[1:] if not importlib.util.find_spec(one)))"
    return run(("-P", "-c", script, *NEEDED), 60)[1].split()


def slug(name: str) -> str:
    """A GPU's name as part of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def fingerprint(root: Path = ROOT) -> str:
    """Of all that results depend on."""
    folders = ("csrc", "engine", "kernels", "export", "tests", "benchmarks/gpu")
    files = [path for folder in folders for path in sorted((root / folder).rglob("*")) if path.is_file()]
    digest = hashlib.sha256()
    for path in [*files, root / "setup.py", root / "pyproject.toml"]:
        if path.suffix in (".py", ".pyi", ".h", ".cpp", ".inl", ".cu", ".toml", ".json"):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def environment() -> dict[str, str]:
    """What the parts run in: our build before all else, and kernels compiled."""
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(SITE), *([inherited] if inherited else [])])
    ours = {"TRITON_INTERPRET": "0", "STEPFUSE_CUBINS": str(CUBINS), "PYTHONUNBUFFERED": "1"}
    ours["TEARDOWN_CUPTI"] = "0"  # a profiler that is made again between CUDA graphs may crash
    return {**os.environ, "PYTHONPATH": path, **ours}


def run(command: Sequence[str], seconds: float) -> tuple[int, str]:
    """Exit status and output, without this folder's path; 124 if it was stopped."""
    try:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        text = error.stdout or b""  # bytes, also where text is asked for
        said = text if isinstance(text, str) else text.decode(errors="replace")
        return 124, f"{said}\nstopped after {seconds:g} s".replace(str(ROOT), ".")
    return done.returncode, done.stdout.replace(str(ROOT), ".")


def build(wheels: Path, version: str) -> tuple[int, str]:
    """Installs wheels that lie ready, and this tree, into a folder of their own."""
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--upgrade", "--target", str(SITE))
    log = ""
    if given := sorted(str(path) for path in wheels.glob("*.whl")):
        status, log = run((*install, *given), 120)
        if status != 0:
            return status, log
    status, text = run((*install, "--no-build-isolation", "."), 240)
    if status == 0:
        STATE.mkdir(parents=True, exist_ok=True)
        (STATE / "built").write_text(version)
    return status, log + text


def shortened(text: str, lines: int = LOG_LINES) -> str:
    """The end of a log, and how much was before."""
    all_lines = text.rstrip().splitlines()
    cut = len(all_lines) - lines
    return "\n".join([f"({cut} lines before)", *all_lines[-lines:]] if cut > 0 else all_lines)


def counts(text: str) -> dict[str, int]:
    """Tests passed, failed and skipped, from pytest's last line."""
    found = re.findall(r"(\d+) (passed|failed|skipped|errors?|xfailed|xpassed)\b", text)
    return {kind.rstrip("s") if kind.startswith("error") else kind: int(number) for number, kind in found[-6:]}


def run_part(part: Part, cc: int, version: str) -> dict[str, Any]:
    """Runs a part for a GPU of this compute capability; returns what it found."""
    BUILD.mkdir(parents=True, exist_ok=True)
    scratch = BUILD / "results"
    command = tuple(word.replace("{cubins}", str(CUBINS)).replace("{cc}", str(cc)) for word in part.command)
    if part.writes:
        (scratch / f"{part.writes}.json").unlink(missing_ok=True)
        command = (*command, "--output", str(scratch), "--seconds", str(0.6 * part.seconds))
    began = time.monotonic()
    status, text = run(command, part.seconds)
    finding: dict[str, Any] = {
        "version": version,
        "status": status,
        "seconds": round(time.monotonic() - began, 1),
        "log": shortened(text),
    }
    if part.writes:
        finding["report"] = report_in(scratch / f"{part.writes}.json")
    elif "pytest" in command:
        finding["tests"] = counts(text)
        if part.may_skip and status == 0:
            return finding
        if status == 0 and not finding["tests"].get("passed"):
            finding |= {"status": FAILED, "log": f"{finding['log']}\nno test ran"}
    return finding


def report_in(file: Path) -> dict[str, Any] | None:
    """A benchmark's report as far as it came; None if there is none."""
    try:
        report: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):  # stopped while it was written
        return None
    return report


def kept(promise: Promise, targets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What became of a promise: its worst case, and whether all that prove it are met."""
    cases = [target for target in targets if target["claim"].startswith(promise.claims)]
    counts = [len(cases), promise.cases]
    if not cases:
        return {"promise": promise.claims, "target": None, "unit": "", "value": None, "met": None, "cases": counts}
    worst = (min if cases[0]["at_least"] else max)(cases, key=lambda target: target["measured"])
    return {
        "promise": promise.claims,
        "target": worst["wanted"],
        "unit": worst["unit"],
        "value": worst["measured"],
        "met": len(cases) >= promise.cases and all(target["met"] for target in cases),
        "cases": counts,
    }


def merged(gpu: str, before: Mapping[str, Any], stage: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    """The document with one stage's findings in the place of what it said of that stage before."""
    stages = {**before.get("stages", {}), stage: dict(parts)}
    targets = [
        {"part": name, **target}
        for findings in stages.values()
        for name, finding in findings.items()
        for target in ((finding.get("report") or {}).get("targets") or [])
    ]
    promises = [kept(promise, targets) for promise in PROMISES]
    return {**before, "gpu": gpu, "promises": promises, "targets": targets, "stages": stages}


def write(output: Path, document: Mapping[str, Any]) -> Path:
    """One JSON, and one log of the ends of all parts' outputs."""
    output.mkdir(parents=True, exist_ok=True)
    base = output / f"gpu-{slug(document['gpu'])}"
    log, stages = [], {}
    for stage, parts in document["stages"].items():
        stages[stage] = {
            name: {key: value for key, value in part.items() if key != "log"} for name, part in parts.items()
        }
        for name, part in parts.items():
            log.append(f"== {stage}: {name}: status {part['status']}, {part['seconds']} s\n{part.get('log', '')}\n")
    base.with_suffix(".json").write_text(json.dumps({**document, "stages": stages}, indent=1) + "\n")
    base.with_suffix(".log").write_text("\n".join(log))
    return base.with_suffix(".json")


def saved(name: str) -> Path:
    """Where a part's finding is kept between runs."""
    return STATE / f"{slug(name)}.json"


def found_before(part: Part) -> dict[str, Any] | None:
    """What a part found when it last ran; None if it has not."""
    return report_in(saved(part.name))


def is_done(found: Mapping[str, Any] | None, version: str) -> bool:
    """Whether a part need not run again."""
    return found is not None and found["version"] == version and found["status"] == 0


def run_parts(parts: Sequence[Part], cc: int, version: str) -> Iterator[tuple[Part, dict[str, Any]]]:
    """Runs parts at the same time, and those that fail then again, alone."""
    if not parts:
        return
    print(f"running {', '.join(part.name for part in parts)}", flush=True)
    with ThreadPoolExecutor(len(parts)) as pool:
        tasks = [pool.submit(run_part, part, cc, version) for part in parts]
        found = [task.result() for task in tasks]
    for part, finding in zip(parts, found, strict=True):
        if finding["status"] != 0 and len(parts) > 1:
            print(f"running {part.name} again, alone", flush=True)
            finding = run_part(part, cc, version)
        yield part, finding


def within(parts: Sequence[Part], left: float) -> tuple[list[Part], list[str]]:
    """Those of parts that run at the same time which fit the seconds left, and end by then; and why others do not."""
    fit = [replace(part, seconds=min(part.seconds, int(left))) for part in parts if part.expected < left]
    why = [
        f"{part.name}: {max(left, 0):.0f} s were left, and it takes about {part.expected}"
        for part in parts
        if part.expected >= left
    ]
    return fit, why


def check(
    stages: Sequence[str], output: Path, wheels: Path, *, again: bool = False, seconds: float = ALL_SECONDS
) -> int:
    """Runs stages within so many seconds; returns the exit status."""
    until = time.monotonic() + seconds
    gpu = find_gpu()
    if isinstance(gpu, str):
        for stage in stages:
            print(f"{stage}: not run: {gpu}")
        return NO_GPU
    gpu_name, cc = gpu
    version = fingerprint()
    built = STATE / "built"
    if again or not built.exists() or built.read_text() != version:
        print(f"building for {gpu_name}, sm_{cc}", flush=True)
        status, text = build(wheels, version)
        if status != 0:
            print(f"{shortened(text)}\nthe build failed with status {status}")
            return NOT_BUILT
    absent = missing()
    if absent:
        print(f"without {', '.join(absent)} some parts fail or are left out: put wheels into {wheels}", flush=True)
    document: dict[str, Any] = {"gpu": gpu_name, "missing": absent, "skipped": []}
    failed = False
    for stage in STAGES:
        findings: dict[str, Any] = {}
        for group in at_once(STAGES[stage]):
            old = {part.name: found_before(part) for part in group}
            due = [part for part in group if stage in stages and (again or not is_done(old[part.name], version))]
            due, skipped = within(due, until - time.monotonic())
            document["skipped"] += skipped
            for line in skipped:
                print(f"skipped: {line}", flush=True)
            for part, found in run_parts(due, cc, version):
                saved(part.name).write_text(json.dumps(found))
                old[part.name] = found
                print(f"== {part.name}\n{found['log']}", flush=True)
            findings |= {name: found for name, found in old.items() if found is not None}
            if findings or skipped:
                document = merged(gpu_name, document, stage, findings)
                path = write(output, document)
        failed |= stage in stages and any(found["status"] != 0 for found in findings.values())
    print(f"written: {path}, {path.with_suffix('.log').name}")
    return FAILED if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stage", choices=("all", *STAGES), default="all")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--wheels", type=Path, default=ROOT / ".wheels", help="folder of wheels to install first")
    parser.add_argument("--again", action="store_true", help="do again what is done")
    parser.add_argument("--seconds", type=float, default=ALL_SECONDS, help="what does not fit them is skipped")
    options = parser.parse_args(arguments)
    stages = list(STAGES) if options.stage == "all" else [options.stage]
    paths = options.output.resolve(), options.wheels.resolve()
    return check(stages, *paths, again=options.again, seconds=options.seconds)


if __name__ == "__main__":
    sys.exit(main())
