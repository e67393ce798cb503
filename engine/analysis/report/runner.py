"""The run of a report: the experiments on a model, and their results as pictures, tables and one page.

Each experiment NAME writes ``NAME.png``, ``NAME.csv`` (its rows), ``NAME.npz`` (what its picture shows beside them) and
``NAME.json`` (rows, settings, findings and their provenance); ``report.md`` is written from all records after each
experiment. So a run that is interrupted keeps the experiments that it has finished, and one experiment can be run again
by itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy.typing as npt

from stepfuse.analysis.figures.style import new_figure, save_figure
from stepfuse.analysis.measures.frechet import FeatureFunction
from stepfuse.analysis.measures.judge import Judge
from stepfuse.analysis.report.catalog import EXPERIMENTS, chosen
from stepfuse.analysis.report.kept import write_arrays
from stepfuse.analysis.report.options import ReportOptions, too_few_samples
from stepfuse.analysis.report.page import page
from stepfuse.analysis.report.records import as_json, provenance, read_records, require_same_model
from stepfuse.analysis.report.subject import Model, Subject, opened
from stepfuse.analysis.report.tables import as_csv, rows_of, settings_of, write_text
from stepfuse.files.atomic import write_atomically

REPORT = "report.md"


@dataclass(frozen=True)
class Outcome:
    """The outcome of one experiment.

    Attributes:
        name: The experiment's name, which is also that of its files.
        seconds: How long it took, the figure included.
        findings: Sentences that state what was measured, the headline first; empty if it was skipped.
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
    started: Callable[[str], None] | None = None,
    finished: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Runs the experiments on a model and writes a report.

    Args:
        model: An embedded model's name, a bundle folder, or an engine.
        output: The report's folder. Records of other experiments of the same model in it stay in the report.
        quick: Whether to run at small sizes; see ``SIZES`` of ``stepfuse.analysis.report.options``.
        only: Names of the experiments to run; None is all.
        seed: Seed of all noise.
        samples: Samples of each row where they are judged, more than there are features; None is what ``SIZES`` says.
        student: The model that was distilled from this one, for the frontier; an embedded model has its own.
        judge: Classifies samples and measures their distance to real data; None is the embedded judge, if the model has
            one.
        features: Instead of a judge: an ONNX file with one input, or any function from samples to features (n, F).
        real: Real samples to compare the features with, (n, *shape) floating point in the data range; or a .npy file.
        progress: Whether progress bars are shown.
        started: Callback with the name of each experiment as it begins.
        finished: Callback with the outcome of each experiment as it ends.

    Returns:
        The outcome of each experiment, in the order they ran.

    Raises:
        ValueError: If ``only`` names no experiment or one that is unknown, ``seed`` is not in [0, 2^63), ``samples`` is
            below 1 or not above the number of features, features and real samples are not given together or with a
            judge, they do not fit the model, or ``output`` holds another model's report.
        TypeError: If ``only`` is one string.
        BundleError: If the model, the student or the judge cannot be loaded.
        FileNotFoundError: If the file of ``features`` or ``real`` does not exist.
        ImportError: If matplotlib is not installed.

    Examples:
        >>> sf.analysis.analyze("fashion", "report", quick=True, only=["paths"])  # doctest: +SKIP
    """
    names = chosen(only)
    if not 0 <= seed < 1 << 63:
        raise ValueError(f"seed must be between 0 and 2^63 - 1, got {seed}")
    if samples is not None and samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    new_figure(1, 1)  # raises without matplotlib now, and not after the first experiment has run
    folder = Path(output)
    options = ReportOptions(quick=quick, seed=seed, samples=samples, progress=progress)
    outcomes = []
    with opened(model, student=student, judge=judge, features=features, real=real) as subject:
        if reason := too_few_samples(names, subject, options):
            raise ValueError(reason)
        folder.mkdir(parents=True, exist_ok=True)
        require_same_model(folder, subject)
        for name in names:
            if started:
                started(name)
            outcome = _run(name, subject, options, folder)
            outcomes.append(outcome)
            write_text(folder / REPORT, page(read_records(folder), subject.name))
            if finished:
                finished(outcome)
    return outcomes


def _run(name: str, subject: Subject, options: ReportOptions, folder: Path) -> Outcome:
    experiment = EXPERIMENTS[name]
    record = {
        "experiment": name,
        "title": experiment.title,
        "question": experiment.question,
        **provenance(subject, options),
    }
    if reason := experiment.unfit(subject):
        for stale in (*folder.glob(f"{name}.*"), *folder.glob(f"{name}_points.csv")):
            stale.unlink()
        write_text(folder / f"{name}.json", as_json({**record, "skipped": reason}))
        return Outcome(name, 0.0, (), reason)
    began = time.perf_counter()
    result = experiment.run(subject, options)
    findings = tuple(experiment.summarize(result))
    write_atomically(folder / f"{name}.png", lambda scratch: save_figure(experiment.draw(result), scratch))
    write_arrays(folder, name, result)
    tables = rows_of(result)
    for kind, rows in tables.items():
        write_text(folder / (f"{name}.csv" if kind == "rows" else f"{name}_{kind}.csv"), as_csv(rows))
    seconds = time.perf_counter() - began
    record |= {"seconds": round(seconds, 2), "findings": findings, "settings": settings_of(result), **tables}
    write_text(folder / f"{name}.json", as_json(record))  # last, so that an experiment with a record has all its files
    return Outcome(name, seconds, findings)
