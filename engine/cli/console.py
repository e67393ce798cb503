"""What is written to the terminal or a pipe: reports, errors, warnings."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.markup import escape

from stepfuse.display import printable

_TRAILING = re.compile(r" +$", re.MULTILINE)
_WIDE = 1 << 14  # columns of a table in a pipe: as many as it needs


def stdout() -> Console:
    """The console of what a command reports; in a pipe no line is wrapped."""
    return _console(stderr=False)


def stderr() -> Console:
    """The console of errors, warnings and progress; likewise."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    made = Console(stderr=stderr, emoji=False, soft_wrap=True)  # ":b:" of a path is no emoji
    if not is_terminal(made):
        made.width = _WIDE
    return made


def is_terminal(console: Console) -> bool:
    """Whether lines go to a terminal; FORCE_COLOR asks for its colours elsewhere, not for its width and its bars."""
    return console.file is not None and console.file.isatty()


def shown(given: object, limit: int | None = None) -> str:
    """A text as it stands inside rich's markup: ``printable``, and nothing in it is read as markup."""
    return escape(printable(given, limit))


def complain(text: str, *, colour: str = "red", mark: str = "stepfuse:") -> None:
    """Prints a line on standard error, for an error or a warning."""
    line = f"[{colour}]{mark}[/] {shown(text)}" if mark else shown(text)
    stderr().print(line, highlight=False)


@dataclass(frozen=True)
class Report:
    """How a command reports what it has done: lines for people, an object for programs, or nothing.

    Attributes:
        json: Whether an object is written to standard output instead of lines.
        quiet: Whether lines and progress are left out.
        stderr: Whether lines go to standard error, since standard output carries the result itself.
    """

    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of text.", rich_help_panel="Report")
    ] = False
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print errors and warnings alone.", rich_help_panel="Report")
    ] = False
    stderr: bool = False

    @property
    def progress(self) -> bool:
        """Whether progress is shown, on standard error."""
        return not self.quiet

    def beside_output(self) -> Report:
        """The same where the result itself goes to standard output.

        Raises:
            ValueError: If an object is to go there, too.
        """
        if self.json:
            raise ValueError("--json must be left out with --output -: both write to standard output")
        return replace(self, stderr=True)

    def note(self, text: str) -> None:
        """Prints a line of progress, on standard error."""
        if self.progress:
            stderr().print(shown(text), highlight=False)

    def say(self, text: str, *, bold: bool = False) -> None:
        """Prints a line as it is: nothing in it is read as markup, and it is not wrapped in a pipe."""
        if not (self.json or self.quiet):
            console = stderr() if self.stderr else stdout()
            console.print(f"[bold]{shown(text)}[/]" if bold else shown(text), highlight=False)

    def show(self, table: RenderableType) -> None:
        """Prints a table; in a pipe as wide as it needs to be."""
        if not (self.json or self.quiet):
            console = stdout()
            with console.capture() as captured:
                console.print(table, highlight=False, soft_wrap=False)
            sys.stdout.write(_TRAILING.sub("", captured.get()))

    def finish(self, **facts: Any) -> None:
        """Prints the object, if one is asked for."""
        if self.json:
            sys.stdout.write(json.dumps(facts, indent=2, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """What JSON has no type for: numpy's numbers and arrays as Python's, the rest as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
