"""The figures that README.md and docs quote, held to the results that they are from.

    python benchmarks/quoted.py             # checks: which figures are not those of results/, which results are stale
    python benchmarks/quoted.py --write     # writes the figures of results/ into the documents
    python benchmarks/quoted.py --measure   # runs what README's table quotes (minutes), then --write
    python benchmarks/quoted.py --accept mixed_load --reason "the loop's errors have other words"

A result is stale when code that it depends on (``sources.py``) has changed since it was measured. ``--accept`` says of
the code as it is that it does not change the figures; it is kept, with the reason, in ``results/accepted.json``. Exit
status 1 says that a figure is not its result's, or that README quotes a stale one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from excerpts import MARK, TABLE, excerpts
from report import RESULTS
from rich.console import Console
from sources import ROOT, SOURCES, digest

README = (*TABLE, "mixed_load")  # with docs/measurements.md, which goes on where README ends
ACCEPTED = RESULTS / "accepted.json"
_NUMBER = r"\d{4}-\d\d-\d\d|\d[\d,]*(?:\.\d+)?(?:e-?\d+)?"


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The committed results by name, and those of the embedded models' recipe."""
    found = {name: json.loads((folder / f"{name}.json").read_text()) for name in SOURCES}
    recipe = ROOT / "examples" / "fashion"
    for name, file in (("recipe", "results.json"), ("recipe-8step", "results-8step.json")):
        found[name] = json.loads((recipe / file).read_text())
    return found


def differences(results: Mapping[str, Any], root: Path = ROOT) -> list[str]:
    """Figures in the documents that are not those of the results, and excerpts that are not there; a line each."""
    found = []
    for document, expected in excerpts(results).items():
        text = (root / document).read_text()
        for excerpt in expected:
            matches = list(_pattern(excerpt).finditer(text))
            plain = excerpt.replace(MARK, "")
            if len(matches) != 1:
                found.append(f"{document} must have once, and has {len(matches)} times: {plain}")
            elif list(matches[0].groups()) != _figures(excerpt):
                found.append(f"{document} must have {', '.join(_figures(excerpt))}: {' '.join(matches[0][0].split())}")
    return found


def write(results: Mapping[str, Any], root: Path = ROOT) -> list[str]:
    """Puts the results' figures into the documents; returns the names of those that changed."""
    changed = []
    for document, expected in excerpts(results).items():
        path = root / document
        before = text = path.read_text()
        for excerpt in expected:
            for match in list(_pattern(excerpt).finditer(text))[:1]:
                pieces, end = [], 0
                for group, figure in enumerate(_figures(excerpt), 1):
                    pieces += [text[end : match.start(group)], figure]
                    end = match.end(group)
                text = "".join(pieces) + text[end:]
        if text != before:
            path.write_text(text)
            changed.append(document)
    return changed


def stale(results: Mapping[str, Any]) -> list[str]:
    """Names of results whose sources have changed since, and were not accepted as they are."""
    accepted = read_accepted()
    return [
        name
        for name in SOURCES
        if digest(name) not in (results[name].get("sources_sha256"), accepted.get(name, {}).get("sources_sha256"))
    ]


def read_accepted() -> dict[str, dict[str, str]]:
    """What was accepted, by the result's name: the digest and the reason."""
    return dict(json.loads(ACCEPTED.read_text())) if ACCEPTED.exists() else {}


def _figures(excerpt: str) -> list[str]:
    return excerpt.split(MARK)[1::2]


def _pattern(excerpt: str) -> re.Pattern[str]:
    """An excerpt with any number in the place of each figure, broken into lines anywhere."""
    parts = excerpt.split(MARK)
    words = [rf"({_NUMBER})" if i % 2 else r"\s+".join(map(re.escape, part.split(" "))) for i, part in enumerate(parts)]
    return re.compile("".join(words))


def main(
    write_figures: Annotated[
        bool, typer.Option("--write", help="write the results' figures into the documents")
    ] = False,
    measure: Annotated[bool, typer.Option("--measure", help="run README's benchmarks first; implies --write")] = False,
    accept: Annotated[list[str] | None, typer.Option(help="a result that the code as it is does not change")] = None,
    reason: Annotated[str, typer.Option(help="why, for --accept")] = "",
) -> None:
    """Checks or writes the quoted figures; see the module."""
    console = Console()
    if bool(accept) != bool(reason):
        raise typer.BadParameter("--accept and --reason go together")
    if unknown := set(accept or ()) - set(SOURCES):
        raise typer.BadParameter(f"--accept must name results, {', '.join(SOURCES)}, got {', '.join(sorted(unknown))}")
    if accept:
        known = read_accepted()
        known |= {name: {"sources_sha256": digest(name), "reason": reason} for name in accept}
        ACCEPTED.write_text(json.dumps(dict(sorted(known.items())), indent=2) + "\n")
    failed = [name for name in TABLE if subprocess.run(_command(name), check=False).returncode] if measure else []
    results = read_results()
    if write_figures or measure:
        for document in write(results):
            console.print(f"written: {document}", highlight=False, soft_wrap=True)
    missing, old = differences(results), stale(results)
    for text in [*(f"failed: {name}" for name in failed), *missing]:
        console.print(text, style="red", highlight=False, markup=False, soft_wrap=True)
    for name in old:
        quoted = ", quoted in README.md" if name in README else ""
        console.print(
            f"stale: {name}{quoted}: measured with other sources: {', '.join(SOURCES[name])}", highlight=False
        )
    raise typer.Exit(1 if failed or missing or set(old) & set(README) else 0)


def _command(name: str) -> list[str]:
    return [sys.executable, str(ROOT / "benchmarks" / f"{name}.py")]


if __name__ == "__main__":
    typer.run(main)
