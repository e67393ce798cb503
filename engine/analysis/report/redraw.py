"""A report's figures, sentences and page made anew from what it has measured: rows, settings and kept arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stepfuse.analysis.figures.style import new_figure, save_figure
from stepfuse.analysis.report.catalog import EXPERIMENTS, chosen
from stepfuse.analysis.report.kept import read_arrays, restored
from stepfuse.analysis.report.page import page
from stepfuse.analysis.report.records import as_json, read_records
from stepfuse.analysis.report.runner import REPORT
from stepfuse.analysis.report.tables import write_text
from stepfuse.files.atomic import write_atomically


def redraw(
    folder: str | os.PathLike[str],
    *,
    only: Sequence[str] | None = None,
    finished: Callable[[str], None] | None = None,
) -> list[str]:
    """Draws the figures of a report again and writes its sentences and its page anew. Nothing is sampled or measured.

    Args:
        folder: A report that ``analyze`` has written.
        only: Names of the experiments; None is all that the report has.
        finished: Callback with the name of each experiment as its figure is there.

    Returns:
        The names of the experiments whose figures were drawn.

    Raises:
        ValueError: If the folder has no report, ``only`` names no experiment or one that is unknown or not in the
            report, or a file is missing or is not what an experiment wrote.
        TypeError: If ``only`` is one string.
        ImportError: If matplotlib is not installed.

    Examples:
        >>> sf.analysis.redraw("report")  # doctest: +SKIP
    """
    names, folder = chosen(only), Path(folder)
    new_figure(1, 1)  # raises without matplotlib
    records = read_records(folder)
    if not records:
        raise ValueError(f"{folder} must be a report's folder, got one without records of experiments")
    done = {record["experiment"]: record for record in records if not record.get("skipped")}
    if missing := [name for name in names if only is not None and name not in done]:
        raise ValueError(f"only must name experiments of the report, {', '.join(done)}, got {', '.join(missing)}")
    drawn = [name for name in names if name in done]
    results = {name: read_result(folder, done[name]) for name in drawn}  # all are read before one is written
    for name, result in results.items():
        experiment = EXPERIMENTS[name]
        figure, record = experiment.draw(result), done[name]
        write_atomically(folder / f"{name}.png", partial(save_figure, figure))
        record |= {"title": experiment.title, "question": experiment.question}
        record["findings"] = experiment.summarize(result)
        write_text(folder / f"{name}.json", as_json(record))
        if finished:
            finished(name)
    write_text(folder / REPORT, page(records, records[0]["model"]))
    return drawn


def read_result(folder: Path, record: dict[str, Any]) -> Any:
    """The result of an experiment, of its record and the arrays beside it.

    Raises:
        ValueError: If the arrays are missing, or either is not what an experiment wrote.
    """
    name = record["experiment"]
    arrays = read_arrays(folder, name)
    try:
        return restored(EXPERIMENTS[name].result, record, arrays)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{folder / name}.json and .npz must be what an experiment wrote: {error!r}") from error
