"""The report: runs the experiments on a model and writes what they found as pictures, tables and one page.

Each experiment NAME leaves ``NAME.png``, ``NAME.csv`` (its rows) and ``NAME.json`` (rows, settings, findings, and how
they were made); ``report.md`` is written anew from all of them after each. So a run that is stopped keeps what it has,
and one experiment can be run again by itself.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse import _core
from stepfuse.analysis.experiments import EXPERIMENTS, Plan, too_few_samples
from stepfuse.analysis.figures import new_figure, save_figure
from stepfuse.analysis.frechet import FeatureFunction
from stepfuse.analysis.judge import Judge
from stepfuse.analysis.page import page
from stepfuse.analysis.subject import Model, Subject, opened
from stepfuse.analysis.tables import as_csv, rows_of, settings_of, write_text, write_whole

REPORT = "report.md"

_PACKAGES = ("stepfuse", "numpy", "onnxruntime", "matplotlib")


@dataclass(frozen=True)
class Outcome:
    """What became of one experiment.

    Attributes:
        name: The experiment's name, which its files have.
        seconds: How long it took, drawing included.
        findings: Sentences that state what was measured, the headline first; empty if it was not run.
        skipped: Why it was not run; empty if it was.
    """

    name: str
    seconds: float
    findings: tuple[str, ...]
    skipped: str = ""


def analyze(
    model: Model,
    output: str | os.PathLike[str],
    *,
    quick: bool = False,
    only: Sequence[str] | None = None,
    seed: int = 0,
    samples: int | None = None,
    student: Model | None = None,
    judge: str | os.PathLike[str] | Judge | None = None,
    features: str | os.PathLike[str] | FeatureFunction | None = None,
    real: str | os.PathLike[str] | npt.ArrayLike | None = None,
    progress: bool = False,
    finished: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Runs the experiments on a model and writes a report.

    Args:
        model: An embedded model's name, a bundle folder, or an engine.
        output: The report's folder. What other experiments of the same model left there stays in the report.
        quick: Small sizes, for a look; see ``SIZES`` of ``stepfuse.analysis.experiments``.
        only: Names of the experiments to run; None is all.
        seed: Of all noise.
        samples: Samples of each row where they are judged, if not those of the table: more than there are features.
        student: What was distilled from the model, for the frontier; an embedded model brings its own.
        judge: Names samples and measures their distance to real data; None is the embedded judge, if the model has one.
        features: Instead of a judge: an ONNX file with one input, or any function from samples to features (n, F).
        real: Real samples to compare the features with, (n, *shape) floating point in the data range; or a .npy file.
        progress: Whether bars are shown.
        finished: Told of each experiment as it is done.

    Returns:
        What became of each experiment, in the order they ran.

    Raises:
        ValueError: If an argument is out of bounds, or ``output`` holds another model's report.
        ImportError: If matplotlib is not installed.
    """
    names = _chosen(only)
    if not 0 <= seed < 1 << 63:
        raise ValueError(f"seed must be between 0 and 2^63 - 1, got {seed}")
    if samples is not None and samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    new_figure(1, 1)  # if figures cannot be drawn, say so now and not after the first experiment
    folder = Path(output)
    plan = Plan(quick=quick, seed=seed, samples=samples, progress=progress)
    outcomes = []
    with opened(model, student=student, judge=judge, features=features, real=real) as subject:
        if reason := too_few_samples(names, subject, plan):
            raise ValueError(reason)
        folder.mkdir(parents=True, exist_ok=True)
        _require_same_model(folder, subject)
        for name in names:
            outcome = _run(name, subject, plan, folder)
            outcomes.append(outcome)
            write_text(folder / REPORT, page(_records(folder), subject.name))
            if finished:
                finished(outcome)
    return outcomes


def _chosen(only: Sequence[str] | None) -> list[str]:
    if isinstance(only, str):
        raise TypeError(f"only must be a list of names, got {only!r}")
    unknown = [name for name in only or () if name not in EXPERIMENTS]
    if unknown or (only is not None and not only):
        raise ValueError(f"only must name some of {', '.join(EXPERIMENTS)}, got {', '.join(unknown) or 'none'}")
    return [name for name in EXPERIMENTS if only is None or name in only]


def _run(name: str, subject: Subject, plan: Plan, folder: Path) -> Outcome:
    experiment = EXPERIMENTS[name]
    made = {"experiment": name, "title": experiment.title, "question": experiment.question, **_made(subject, plan)}
    if reason := experiment.unfit(subject):
        for stale in (*folder.glob(f"{name}.*"), *folder.glob(f"{name}_points.csv")):
            stale.unlink()
        write_text(folder / f"{name}.json", _json({**made, "skipped": reason}))
        return Outcome(name, 0.0, (), reason)
    began = time.perf_counter()
    result = experiment.run(subject, plan)
    found = tuple(experiment.tell(result))
    write_whole(folder / f"{name}.png", lambda scratch: save_figure(experiment.draw(result), scratch))
    tables = rows_of(result)
    for kind, rows in tables.items():
        write_text(folder / (f"{name}.csv" if kind == "rows" else f"{name}_{kind}.csv"), as_csv(rows))
    seconds = time.perf_counter() - began
    record = {**made, "seconds": round(seconds, 2), "findings": found, "settings": settings_of(result), **tables}
    write_text(folder / f"{name}.json", _json(record))  # last: what has a record is whole
    return Outcome(name, seconds, found)


def _made(subject: Subject, plan: Plan) -> dict[str, Any]:
    """How the figures came about: what a reader needs to get them again, and what the times depend on."""
    return {
        "model": subject.name,
        "model_sha256": subject.identity,
        "student": subject.student_name,
        "judged_by": subject.judged_by,
        "seed": plan.seed,
        "quick": plan.quick,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
    }


def machine() -> dict[str, Any]:
    """What times were taken on: the processor, the cores that this process may use, the instruction set."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processor = named[0] if named else platform.processor() or platform.machine()
    return {"processor": processor, "cores": cores, "instructions": _core.isas()[-1], "system": platform.system()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _records(folder: Path) -> list[dict[str, Any]]:
    """What the experiments left in the folder, in the report's order."""
    found = []
    for name in EXPERIMENTS:
        file = folder / f"{name}.json"
        if file.is_file():
            try:
                record = json.loads(file.read_text(encoding="utf-8"))
                found.append({**record, "model": record["model"], "model_sha256": record["model_sha256"]})
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{file} must be what an experiment wrote: {error!r}; remove it") from error
    return found


def _require_same_model(folder: Path, subject: Subject) -> None:
    """Refuses to mix two models in one report."""
    for record in _records(folder):
        if (record["model"], record["model_sha256"]) != (subject.name, subject.identity):
            same_name = record["model"] == subject.name
            other = f"other weights of {subject.name}" if same_name else record["model"]
            raise ValueError(f"output must be a folder of {subject.name}'s own, got {folder}, with a report of {other}")


def _json(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False, default=_native) + "\n"


def _native(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a record holds plain values, got {type(value).__name__}")
