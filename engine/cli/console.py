"""What is written to the terminal or a pipe: reports, errors, warnings."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from stepfuse.display import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_TRAILING = re.compile(r" +$", re.MULTILINE)
_WIDE = 1 << 14  # columns of a table in a pipe: as many as it needs


def stdout() -> Console:
    """The console of what a command reports; in a pipe no line is wrapped."""
    return _console(stderr=False)


def stderr() -> Console:
    """The console of errors, warnings and progress; likewise."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console  # a tenth of a cold start: plain lines do without

    made = Console(stderr=stderr, emoji=False, soft_wrap=True)  # ":b:" of a path is no emoji
    if not is_terminal(made):
        made.width = _WIDE
    return made


def is_terminal(console: Console) -> bool:
    """Whether lines go to a terminal; FORCE_COLOR asks for its colours elsewhere, not for its width and its bars."""
    return console.file is not None and console.file.isatty()


def shown(given: object, limit: int | None = None) -> str:
    """A text as it stands inside rich's markup: ``printable``, and nothing in it is read as markup."""
    from rich.markup import escape

    return escape(printable(given, limit))


def complain(text: str, *, colour: str = "red", mark: str = "stepfuse:") -> None:
    """Prints a line on standard error, for an error or a warning."""
    _line(text, mark=mark, style=colour, to_stderr=True)


def _line(text: str, *, mark: str = "", style: str = "", to_stderr: bool = False) -> None:
    """Prints a line as it is: nothing in it is read as markup, and it is not wrapped in a pipe.

    Args:
        text: The line.
        mark: What stands in front of it.
        style: Rich's, of the mark, or of the whole line where there is none.
        to_stderr: Whether it goes to standard error.
    """
    stream = sys.stderr if to_stderr else sys.stdout
    if style and _may_be_styled(stream):
        styled = f"[{style}]{mark}[/] {shown(text)}" if mark else f"[{style}]{shown(text)}[/]"
        (stderr() if to_stderr else stdout()).print(styled, highlight=False)
    elif stream is not None:  # closed by the shell's >&-
        print(*([mark] if mark else []), printable(text), file=stream, flush=True)


def _may_be_styled(stream: IO[str] | None) -> bool:
    """Whether rich might write colours: to a terminal, or where the environment asks for them elsewhere."""
    asked = any(name in os.environ for name in ("FORCE_COLOR", "TTY_COMPATIBLE"))
    return stream is not None and (asked or stream.isatty())


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
            _line(text, to_stderr=True)

    def say(self, text: str, *, bold: bool = False) -> None:
        """Prints a line as it is: nothing in it is read as markup, and it is not wrapped in a pipe."""
        if not (self.json or self.quiet):
            _line(text, style="bold" if bold else "", to_stderr=self.stderr)

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
