"""The command ``stepfuse batch``: a table of requests, drawn into a folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepfuse.batch.formats import FORMATS, IMAGE_FORMATS, SUFFIXES
from stepfuse.bundle.bundle import embedded_models
from stepfuse.cli.command import FAILED
from stepfuse.cli.common import refuse
from stepfuse.cli.completion import model_names, words
from stepfuse.cli.console import Report, complain
from stepfuse.cli.loras import files_of
from stepfuse.cli.options import MACHINE, OUTPUT, WHAT, Force, Machine
from stepfuse.serving.progress import ProgressBar

if TYPE_CHECKING:
    from stepfuse.batch.job import Job, Tally

_RAY = "Ray"


def batch(
    requests: Annotated[
        Path,
        typer.Argument(help=f"A table of a request a row: {', '.join(SUFFIXES)}; columns as docs/ray.md has them."),
    ],
    *,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="TEXT",
            help="An embedded model's name, or a bundle folder.",
            rich_help_panel=WHAT,
            autocompletion=model_names,
        ),
    ] = "fashion",
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN", help="A column that only records have; repeat it for several.", rich_help_panel=WHAT
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="A LoRA that rows can choose, in a column lora; repeat it.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Draw rows again that failed before.", rich_help_panel=WHAT)
    ] = False,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Where it is written; what is there of this job is kept.",
            rich_help_panel=OUTPUT,
        ),
    ],
    format: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"One of {', '.join(FORMATS)}.",
            rich_help_panel=OUTPUT,
            autocompletion=words(*FORMATS),
        ),
    ] = "files",
    image_format: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"One of {', '.join(IMAGE_FORMATS)}.",
            rich_help_panel=OUTPUT,
            autocompletion=words(*IMAGE_FORMATS),
        ),
    ] = "png",
    part_rows: Annotated[
        int, typer.Option(metavar="N", help="Rows of a shard, or of a folder of files.", min=1, rich_help_panel=OUTPUT)
    ] = 1000,
    force: Force = False,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic",
            help="Pad forwards, so that pictures are the same to the bit in any batch.",
            rich_help_panel=MACHINE,
        ),
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Draw on this Ray cluster; local is one on this machine.", rich_help_panel=_RAY
        ),
    ] = None,
    actors: Annotated[
        int | None,
        typer.Option(metavar="N", help="Processes that draw there; one a node.", min=1, rich_help_panel=_RAY),
    ] = None,
    machine: Machine,
    report: Report,
) -> None:
    """Draw a table of requests into a folder, each row once: run it again after it was ended, and it goes on."""
    from stepfuse.batch.job import Job, Tally  # with ONNX Runtime, which help does not need
    from stepfuse.batch.tables import count_rows

    if ray is None:
        refuse("is for --ray, which says where: leave it out", actors=actors)
    job = Job(
        requests=requests.absolute(),
        folder=output.absolute(),
        model=str(Path(model).absolute()) if model not in embedded_models() and Path(model).is_dir() else model,
        format=format,
        image_format=image_format,
        part_rows=part_rows,
        keep=tuple(keep or ()),
        deterministic=deterministic,
        loras=files_of(lora),
        **machine.arguments,
    )
    tally = Tally()
    began = time.perf_counter()
    rows = count_rows(requests)
    with job.opened(force=force), _progress(requests.name, rows, report) as show:
        drawing = _here(job, retry_failed) if ray is None else _on_ray(job, rows, ray, actors, retry_failed)
        with closing(drawing):
            for found in drawing:
                tally += found
                show(tally.rows)
    seconds = time.perf_counter() - began
    report.say(f"{tally.drawn} drawn in {seconds:.1f} s, {tally.kept} were there already: {output}")
    report.finish(
        folder=str(output),
        rows=tally.rows,
        drawn=tally.drawn,
        kept=tally.kept,
        failed=tally.failed,
        seconds=round(seconds, 3),
    )
    if tally.failed:
        way_out = "" if retry_failed else "; --retry-failed draws them again"
        complain(f"{tally.failed} of {tally.rows} rows failed, first {tally.failure}{way_out}")
        raise typer.Exit(FAILED)


def _here(job: Job, retry_failed: bool) -> Generator[Tally, None, None]:
    with job.drawer() as drawer:
        yield from job.run(drawer, retry_failed=retry_failed)


def _on_ray(job: Job, rows: int, address: str, actors: int | None, retry_failed: bool) -> Generator[Tally, None, None]:
    from stepfuse.integrations.ray import run_job

    with redirect_stdout(sys.stderr):  # which is for what the command itself prints
        yield from run_job(job, rows, address=address, actors=actors, retry_failed=retry_failed)


@contextmanager
def _progress(name: str, rows: int, report: Report) -> Iterator[Callable[[int], None]]:
    """A bar over rows, on standard error."""
    bar = ProgressBar(rows, f"drawing {name}", unit="rows")
    if report.progress:
        bar.start()
    try:
        yield (lambda done: bar.update(done, rows)) if report.progress else lambda done: None
    finally:
        bar.stop()
