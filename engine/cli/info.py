"""The command ``stepfuse info``: what a bundle holds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import stepfuse as sf
from stepfuse.bundle.foreign import next_step
from stepfuse.bundle.outline import defaults_in_words, facts_of_model
from stepfuse.bundle.pipeline_info import PipelineInfo
from stepfuse.cli.completion import model_names
from stepfuse.cli.console import Report, shown
from stepfuse.cli.picture_info import picture_json, picture_rows, table_rows
from stepfuse.display import NAME, byte_size
from stepfuse.pipeline.size import pixels_of
from stepfuse.requests.bundle_defaults import check_defaults

_PICTURES = (".png", ".apng", ".jpg", ".jpeg", ".webp", ".gif")
_LONGEST = 2000  # characters of an entry: paths and licences are shown whole


def info(
    model: Annotated[
        str,
        typer.Argument(
            help="An embedded model's name, a bundle folder, a picture or a table.", autocompletion=model_names
        ),
    ],
    *,
    report: Report,
) -> None:
    """Say what a bundle is, after checking it, what a table is, or how a picture was drawn."""
    path = Path(model)
    if path.suffix.lower() == ".npz" and path.is_file():
        saved = sf.StepTable.load(path)
        rows, data = table_rows(saved), {"sampler": saved.sampler, "options": dict(saved.options), "rows": len(saved)}
    elif _is_picture(model, path):
        rows, data = picture_rows(path), picture_json(path)
    else:
        bundle = sf.Bundle.load(model)
        rows, data = _bundle_rows(bundle), _as_data(bundle)
    table = Table("", "", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.columns[1].overflow = "fold"
    for name, value in rows:
        table.add_row(f"[bold]{shown(name, NAME)}", shown(value, _LONGEST))
    report.show(table)
    report.finish(**data)


def _is_picture(model: str, path: Path) -> bool:
    """Whether what is given is a picture and no bundle, or is named like one.

    Raises:
        ValueError: If it is a file of samples as numbers, which say nothing of how they were drawn.
    """
    if model in sf.embedded_models() or path.is_dir():
        return False
    if path.suffix.lower() == ".npy" and path.is_file():
        raise ValueError(f"{model} holds samples as numbers, and not how they were drawn: give a bundle or a picture")
    return path.suffix.lower() in _PICTURES or (path.is_file() and not next_step(path))


def _bundle_rows(bundle: sf.Bundle) -> list[tuple[str, object]]:
    check_defaults(bundle)
    facts = bundle.info
    return [
        ("name", bundle.name),
        ("folder", bundle.path),
        *facts_of_model(facts),
        *_describe_pipeline(facts, bundle.pipeline),
        ("defaults", defaults_in_words(facts)),
        *((f"file {name}", f"{byte_size(entry['size'])}, checksum matches") for name, entry in bundle.files.items()),
        ("provenance", bundle.provenance),
        ("licence", bundle.licence),
    ]


def _as_data(bundle: sf.Bundle) -> dict[str, Any]:
    """The same for programs."""
    facts = bundle.info
    data = {
        "name": bundle.name,
        "folder": str(bundle.path),
        "shape": facts.shape,
        "data_range": facts.data_range,
        "prediction_type": facts.prediction_type,
        "schedule": facts.schedule.config,
        "cond": {name: asdict(spec) for name, spec in facts.cond.items()},
        "guidance": facts.guidance,
        "defaults": dict(facts.defaults),
        "files": {name: dict(entry) for name, entry in bundle.files.items()},
        "provenance": bundle.provenance,
        "licence": bundle.licence,
    }
    return data if bundle.pipeline is None else {**data, "pipeline": bundle.pipeline.config}


def _describe_pipeline(facts: sf.ModelInfo, pipeline: PipelineInfo | None) -> list[tuple[str, str]]:
    if pipeline is None:
        return []
    width, height = pixels_of(pipeline, facts.shape)
    size = f"{width} x {height} pixels"
    if pipeline.fixed_size:
        size += " alone"
    else:
        size += f", or any multiples of {pipeline.size_multiple}"
        size += f" up to {pipeline.max_size}" if pipeline.max_size else ""
    prompts = [(f"prompt as {one.input}", f"{one.length} tokens, {one.tokenizer}") for one in pipeline.prompts]
    return [("pipeline", pipeline.source), ("pictures", size), *prompts]
