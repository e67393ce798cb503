"""The command line ``stepfuse``: the commands, put together."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from importlib import import_module
from types import FrameType
from typing import Annotated, Any

import typer
from typer.main import get_command

import stepfuse as sf
from stepfuse.cli.command import TERMINATED, Command, Commands
from stepfuse.cli.options import with_groups

_DRAW, _SERVE, _MAKE, _LOOK = "Draw", "Serve", "Make bundles", "Look"

#: Heading and examples of each command, in the order of --help; a command's module has its name.
COMMANDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "sample": (
        _DRAW,
        (
            "stepfuse sample fashion --cond sneaker --steps 20 -o sneakers.png",
            "stepfuse sample my-pipeline --prompt 'a red cat' -n 4 --seed 7 -o 'out/{prompt}-{seed}.png'",
            "stepfuse sample my-pipeline --prompt-file prompts.txt -o 'out/{index:04}.png' --skip-existing",
        ),
    ),
    "interpolate": (
        _DRAW,
        (
            "stepfuse interpolate fashion --cond sneaker -n 12 -o walk.gif",
            "stepfuse interpolate fashion --grid 5x8 --seeds 0,1,2,3 -o grid.png",
        ),
    ),
    "batch": (
        _DRAW,
        (
            "stepfuse batch requests.jsonl -o pictures",
            "stepfuse batch requests.csv --model my-pipeline --format webdataset -o shards",
            "stepfuse batch requests.jsonl -o pictures --ray local --actors 2",
        ),
    ),
    "serve": (_SERVE, ("stepfuse serve fashion", "stepfuse serve fashion cats=my-pipeline --port 9000 --calibrate")),
    "analyze": (_LOOK, ("stepfuse analyze fashion --quick -o report",)),
    "export": (
        _MAKE,
        ("stepfuse export stable-diffusion-folder -o my-pipeline --precision float16",),
    ),
    "plan": (_MAKE, ("stepfuse plan my-pipeline --for 8.9 --size 512x512",)),
    "lora": (
        _MAKE,
        (
            "stepfuse lora my-pipeline style.safetensors --scale 0.8 -o my-style",
            "stepfuse lora my-style --remove -o my-pipeline-again",
        ),
    ),
    "fit": (_MAKE, ("stepfuse fit fashion --steps 8 -o eight.npz",)),
    "quantize": (_MAKE, ("stepfuse quantize my-model -o my-model-int8",)),
    "bench": (
        _LOOK,
        (
            "stepfuse bench fashion",
            "stepfuse bench my-model --rows 1,8 --threads 1,2 --rate 5,10 -o now.json --plot now.png",
            "stepfuse bench my-model -o now.json --compare before.json",
        ),
    ),
    "info": (_LOOK, ("stepfuse info fashion",)),
    "doctor": (_LOOK, ("stepfuse doctor",)),
}


class _ByName(Mapping[str, Any]):
    """The commands, each made when it is asked for: a run of one does not import the modules of the others."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        heading, examples = COMMANDS[name]
        if name not in self._made:
            alone = typer.Typer(add_completion=False)
            register = alone.command(cls=Command, rich_help_panel=heading, epilog="\n".join(examples))
            register(with_groups(getattr(import_module(f"stepfuse.cli.{name}"), name)))
            self._made[name] = get_command(alone)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class _Commands(Commands):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "commands": _ByName()})


app = typer.Typer(
    cls=_Commands,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Sample trained diffusion models: a compiled engine, the same image for the same seed.",
    epilog="stepfuse sample fashion --cond sneaker -o sneakers.png\nstepfuse sample --help",
)


@app.callback(invoke_without_command=True)
def main(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version and leave.")] = False,
) -> None:
    """Prints the version, or help without a command. SIGTERM removes what is half written, as Ctrl-C does."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _exit)
    if version:
        typer.echo(f"stepfuse {sf.__version__}")
    elif ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)
