"""The command line ``stepfuse``: the commands, put together."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import typer

import stepfuse as sf
from stepfuse.cli.analyze import analyze
from stepfuse.cli.doctor import doctor
from stepfuse.cli.export import export
from stepfuse.cli.info import info
from stepfuse.cli.interpolate import interpolate
from stepfuse.cli.lora import lora
from stepfuse.cli.plan import plan
from stepfuse.cli.quantize import quantize
from stepfuse.cli.sample import sample

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=sf.__doc__)


@app.callback()
def clean_up_when_terminated() -> None:
    """Has SIGTERM end a command as Ctrl-C does: what is half written is removed."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


# In the order in which --help lists them.
for command in (sample, interpolate, analyze, export, plan, lora, quantize, info, doctor):
    app.command()(command)
