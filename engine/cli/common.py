"""What the commands share: the console, errors as one line, options, and how a run is described."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

import stepfuse as sf

console = Console()

Model = Annotated[str, typer.Argument(help="An embedded model's name, or a bundle folder.")]
Sampler = Annotated[str | None, typer.Option(help=f"One of {', '.join(sf.samplers.SAMPLERS)}.")]
Steps = Annotated[int | None, typer.Option(help="Steps; the model's default if left out.")]
GuidanceScale = Annotated[float | None, typer.Option("--guidance-scale", "-g", help="1 is no guidance.")]
Eta = Annotated[float | None, typer.Option(help="DDIM's share of added noise, 0 to 1.")]
MaxRows = Annotated[int | None, typer.Option(help="Most rows of one forward; 64, on a GPU 16.", min=1)]
Device = Annotated[str, typer.Option(help="cpu, cuda, or cuda:N for one of several GPUs.")]
Threads = Annotated[int, typer.Option(help="Threads of the network; 0 is one a core.", min=0)]
NewBundle = Annotated[Path, typer.Option("--output", "-o", help="The bundle to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there already.")]


@contextmanager
def plain_errors() -> Iterator[None]:
    """Prints an error in the command's input as one line; a bug in stepfuse keeps its traceback.

    Raises:
        typer.Exit: With status 1, after such an error.
    """
    try:
        yield
    except (ValueError, TypeError, OSError, MemoryError, ImportError, sf.StepfuseError) as error:
        Console(stderr=True).print(f"[red]stepfuse:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def say(text: str) -> None:
    """Prints a line as it is: nothing in it is read as markup, and a long path is not wrapped."""
    console.print(escape(text), highlight=False, soft_wrap=True)


def parse_cond(info: sf.ModelInfo, text: str | None) -> Any:
    """The conditioning of ``--cond``, a class name or index; None is unconditional.

    Raises:
        ValueError: If ``--cond`` is given and the model does not have exactly one conditioning input.
    """
    if text is None:
        return None
    if len(info.cond) != 1:
        raise ValueError(f"--cond needs a model with one conditioning input, this one has {len(info.cond)}")
    return int(text) if text.isdigit() else text


def describe(table: sf.StepTable, *, conditional: bool = True) -> str:
    """Sampler, steps and guidance in words; samples without conditioning have no guidance."""
    guided = conditional and table.passes > len(table)
    guidance = f", guidance {table.options['guidance_scale']:g}" if guided else ""
    return f"{table.sampler}, {len(table)} steps{guidance}"
