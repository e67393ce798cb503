"""The records of a report: the JSON of each experiment, with the provenance of its results."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from stepfuse.analysis.report.catalog import EXPERIMENTS
from stepfuse.analysis.report.options import ReportOptions
from stepfuse.analysis.report.subject import Subject
from stepfuse.files.strict_json import parse_json
from stepfuse.machine import machine, versions

_PACKAGES = ("stepfuse", "numpy", "onnxruntime", "matplotlib")


def provenance(subject: Subject, options: ReportOptions) -> dict[str, Any]:
    """Where an experiment's results come from: what is needed to reproduce them, and what times depend on."""
    return {
        "model": subject.name,
        "model_sha256": subject.identity,
        "student": subject.student_name,
        "judged_by": subject.judged_by,
        "seed": options.seed,
        "quick": options.quick,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(_PACKAGES),
    }


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records in a report's folder, in the report's order.

    Raises:
        ValueError: If a record is no JSON, or names no model.
    """
    found = []
    for name in EXPERIMENTS:
        file = folder / f"{name}.json"
        if file.is_file():
            try:
                record = parse_json(file.read_bytes())
                found.append({**record, "model": record["model"], "model_sha256": record["model_sha256"]})
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{file} must be what an experiment wrote: {error!r}; remove it") from error
    return found


def require_same_model(folder: Path, subject: Subject) -> None:
    """Checks that a report is not mixed from two models.

    Raises:
        ValueError: If a record in the folder is of a model with another name or other weights, or cannot be read.
    """
    for record in read_records(folder):
        if (record["model"], record["model_sha256"]) != (subject.name, subject.identity):
            same_name = record["model"] == subject.name
            other = f"other weights of {subject.name}" if same_name else record["model"]
            raise ValueError(f"output must be a folder of {subject.name}'s own, got {folder}, with a report of {other}")


def as_json(record: dict[str, Any]) -> str:
    """A record as the text of its file."""
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False, default=_native) + "\n"


def _native(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a record holds plain values, got {type(value).__name__}")
