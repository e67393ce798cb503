"""What the commands share: the console, errors told in a line, and how a run is described."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

import stepfuse as sf

console = Console()

#: Of a GPU that cannot be used, or not as asked.
GPU_ERRORS = (sf.GpuError, sf.CudaError)

Model = Annotated[str, typer.Argument(help="An embedded model's name, or a bundle folder.")]
Sampler = Annotated[str | None, typer.Option(help=f"One of {', '.join(sf.samplers.SAMPLERS)}.")]
Steps = Annotated[int | None, typer.Option(help="Steps; the model's default if left out.")]
GuidanceScale = Annotated[float | None, typer.Option("--guidance-scale", "-g", help="1 is no guidance.")]
Eta = Annotated[float | None, typer.Option(help="DDIM's share of added noise, 0 to 1.")]
MaxRows = Annotated[int | None, typer.Option(help="Most rows of one forward; 64, on a GPU 16.", min=1)]
Device = Annotated[str, typer.Option(help="cpu, cuda, or cuda:N for one of several GPUs.")]
Threads = Annotated[int, typer.Option(help="Threads of the network; 0 is one a core.", min=0)]


@contextmanager
def plain_errors() -> Iterator[None]:
    """What a caller did wrong is told in a line; a bug of ours keeps its traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError, MemoryError, ImportError, sf.DenoiserError, *GPU_ERRORS) as error:
        Console(stderr=True).print(f"[red]stepfuse:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def say(text: str) -> None:
    """Prints a line as it is: what stands in it is no markup, and a path is not broken."""
    console.print(escape(text), highlight=False, soft_wrap=True)


def one_cond(facts: sf.ModelInfo, given: str | None) -> Any:
    """What the network is told for a class name or index; None tells it nothing.

    Raises:
        ValueError: If a condition is given and the model does not have exactly one conditioning input.
    """
    if given is None:
        return None
    if len(facts.cond) != 1:
        raise ValueError(f"--cond needs a model with one conditioning input, this one has {len(facts.cond)}")
    return int(given) if given.isdigit() else given


def describe(table: sf.StepTable, *, told: bool = True) -> str:
    """Sampler, steps and guidance in words; a sample that is told nothing has no guidance."""
    guided = f", guidance {table.options['guidance_scale']:g}" if told and table.passes > len(table) else ""
    return f"{table.sampler}, {len(table)} steps{guided}"
