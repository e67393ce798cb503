"""The report's page in Markdown: a section for each experiment, with its figure, findings and table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stepfuse.analysis.experiments.wording import plural, short
from stepfuse.analysis.report.findings import FAILED
from stepfuse.analysis.report.tables import as_markdown, markdown

Record = Mapping[str, Any]


def page(records: Sequence[Record], model: str) -> str:
    """Markdown of all experiments, with paths relative to the report's folder.

    Args:
        records: The experiments' JSON records, in the order of the sections.
        model: The model's name.
    """
    parts = [f"# {markdown(model)}: what its samples are worth", _preface(records)]
    parts += [_section(record) for record in records]
    return "\n\n".join(parts) + "\n"


def _preface(records: Sequence[Record]) -> str:
    latest = max(records, key=lambda record: record["date"])
    machine, versions = latest["machine"], latest["versions"]
    processor = markdown(machine["processor"])
    lines = [
        f"Made by `stepfuse analyze`, last on {latest['date'][:10]}: {processor}, {plural(machine['cores'], 'core')}"
        f" ({machine['instructions']}), {machine['system']}; "
        + ", ".join(f"{name} {number}" for name, number in versions.items() if number)
        + f". All experiments together took {_duration(sum(record.get('seconds', 0.0) for record in records))}.",
        f"Samples are judged by {markdown(latest['judged_by'])}."
        if latest["judged_by"]
        else "Nothing judges this model's samples, so distances to real data and accuracies are left out."
        " A judge's folder (`--judge FOLDER`) adds them, and so does a feature network with real samples"
        " (`--features f.onnx --real real.npy`).",
    ]
    if any(record["quick"] for record in records):
        lines.append("Sections that say *quick sizes* were made for a look: few samples, few steps, nothing to quote.")
    if latest["judged_by"]:
        lines.append(
            "A Fréchet distance falls with the number of samples, so distances compare within a table, not between two."
        )
    return "\n\n".join(lines)


def _section(record: Record) -> str:
    name = record["experiment"]
    parts = [f"## {record['title']}", record["question"]]
    if reason := record.get("skipped"):
        return "\n\n".join([*parts, f"*Not run: {markdown(reason)}.*"])
    parts.append(f"![{record['title']}]({name}.png)")
    findings = (markdown(finding).replace(markdown(FAILED), FAILED) for finding in record["findings"])
    parts.append("\n".join(f"- {finding}" for finding in findings))
    parts.append(as_markdown(record["rows"]).rstrip("\n"))
    sizes = "quick sizes" if record["quick"] else "default sizes"
    kept = {key: value for key, value in record["settings"].items() if key not in ("seed", "data_range")}
    settings = "".join(
        f"{key.replace('_', ' ')} {_written(value)}, " for key, value in kept.items() if value not in ("", None)
    )
    parts.append(
        f"*{settings}seed {record['seed']}, {sizes}; {record['date'][:10]}, {_duration(record['seconds'])};"
        f" [rows]({name}.csv), [all]({name}.json)*"
    )
    return "\n\n".join(parts)


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return short(value) if isinstance(value, float) else markdown(value)


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
