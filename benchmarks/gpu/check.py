"""Builds, tests and measures what needs an NVIDIA GPU, stage by stage, and writes one JSON and one log.

    make gpu-check                                  # all stages
    make gpu-check STAGE=kernels                    # one; what the others found is kept
    make gpu-check RESULTS=folder WHEELS=folder     # where results go, and where packages that are missing here lie

Stages are ``kernels`` (every compiled step against the CPU's bits; bandwidth and latency), ``graphs`` (a torch module's
trajectories: the CPU's images, one launch, a loop on the device, what goes wrong; what all but the network costs) and
``compare`` (diffusers' loop around the same weights, which needs diffusers). A part that is done and whose sources are
the same is not done again, unless ``--again``.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "gpu"
SITE, CUBINS, STATE = BUILD / "site", BUILD / "cubins", BUILD / "state"

NO_GPU, NOT_BUILT, FAILED = 3, 2, 1
LOG_LINES = 60  # of each part in the log that is kept


@dataclass(frozen=True)
class Part:
    """A command of a stage.

    Attributes:
        name: What the JSON and the log call it.
        command: After the interpreter.
        seconds: It is stopped after so long.
        writes: Name of the JSON that it leaves, if it is a benchmark.
    """

    name: str
    command: tuple[str, ...]
    seconds: int
    writes: str | None = None


def _tests(name: str, seconds: int, *paths: str) -> Part:
    # -P: the root's folders kernels/ and export/ must not shadow packages of those names.
    return Part(name, ("-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths), seconds)


def _benchmark(file: str, writes: str, seconds: int) -> Part:
    return Part(f"{file}.py", (f"benchmarks/gpu/{file}.py",), seconds, writes)


STAGES: dict[str, tuple[Part, ...]] = {
    "kernels": (
        Part("cubins", ("-P", "-m", "stepfuse.kernels.aot", "-o", "{cubins}", "--arch", "{cc}"), 120),
        _tests("tests/gpu: driver and cubins", 120, "tests/gpu/test_driver.py", "tests/gpu/test_cubins.py"),
        _tests("tests/kernels", 240, "tests/kernels"),
        _benchmark("step", "gpu-step", 90),
    ),
    "graphs": (
        _tests("tests/gpu: trajectories", 180, "tests/gpu/test_trajectories.py"),
        _benchmark("trajectories", "gpu-trajectories", 300),
    ),
    "compare": (_benchmark("diffusers_loop", "gpu-diffusers", 480),),
}


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
    return {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "0", "STEPFUSE_CUBINS": str(CUBINS)}


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
        written = scratch / f"{part.writes}.json"
        finding["report"] = json.loads(written.read_text()) if written.exists() else None
    elif "pytest" in command:
        finding["tests"] = counts(text)
        if status == 0 and not finding["tests"].get("passed"):
            finding |= {"status": FAILED, "log": f"{finding['log']}\nno test ran"}
    return finding


def merged(gpu: str, before: Mapping[str, Any], stage: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    """The document with one stage's findings in the place of what it said of that stage before."""
    stages = {**before.get("stages", {}), stage: dict(parts)}
    targets = [
        {"part": name, **target}
        for findings in stages.values()
        for name, finding in findings.items()
        for target in ((finding.get("report") or {}).get("targets") or [])
    ]
    return {"gpu": gpu, "stages": stages, "targets": targets}


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


def check(stages: Sequence[str], output: Path, wheels: Path, *, again: bool = False) -> int:
    """Runs stages; returns the exit status."""
    gpu = find_gpu()
    if isinstance(gpu, str):
        for stage in stages:
            print(f"{stage}: not run: {gpu}")
        return NO_GPU
    name, cc = gpu
    version = fingerprint()
    built = STATE / "built"
    if again or not built.exists() or built.read_text() != version:
        print(f"building for {name}, sm_{cc}", flush=True)
        status, text = build(wheels, version)
        if status != 0:
            print(f"{shortened(text)}\nthe build failed with status {status}")
            return NOT_BUILT
    document: dict[str, Any] = {"gpu": name}
    failed = False
    for stage in STAGES:
        findings = {}
        for part in STAGES[stage]:
            file = saved(part.name)
            old = json.loads(file.read_text()) if file.exists() else None
            if stage in stages and (again or old is None or old["version"] != version or old["status"] != 0):
                print(f"{stage}: {part.name}", flush=True)
                old = run_part(part, cc, version)
                file.write_text(json.dumps(old))
                print(old["log"], flush=True)
            if old is not None:
                findings[part.name] = old
                failed |= stage in stages and old["status"] != 0
        if findings:
            document = merged(name, document, stage, findings)
            path = write(output, document)
    print(f"written: {path}, {path.with_suffix('.log').name}")
    return FAILED if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stage", choices=("all", *STAGES), default="all")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--wheels", type=Path, default=ROOT / ".wheels", help="folder of wheels to install first")
    parser.add_argument("--again", action="store_true", help="do again what is done")
    options = parser.parse_args(arguments)
    stages = list(STAGES) if options.stage == "all" else [options.stage]
    return check(stages, options.output.resolve(), options.wheels.resolve(), again=options.again)


if __name__ == "__main__":
    sys.exit(main())
