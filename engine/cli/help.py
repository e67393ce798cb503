"""``--help``: options under headings and in columns; examples on lines that are not wrapped, to be copied."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stepfuse.cli.console import is_terminal

_MOST_COLUMNS = 110
_LEAST_FLAGS = 18  # columns
_OWN, _GENERAL = "Options", "General"
_OF_ALL = ("help", "version", "install_completion", "show_completion")  # options
_TRAILING = re.compile(r" +$", re.MULTILINE)


def help_of(command: Any, ctx: Any, more: Mapping[str, Sequence[tuple[str, str]]] | None = None) -> str:
    """The help of a command, or of all commands; coloured on a terminal.

    Args:
        command: click's.
        ctx: Likewise.
        more: Further headings with what stands under them.
    """
    console = Console(emoji=False, highlight=False)
    console.width = min(console.width if is_terminal(console) else _MOST_COLUMNS, _MOST_COLUMNS)
    ctx.color = True  # rich chooses, by NO_COLOR and FORCE_COLOR too; click would take colours away from any pipe
    with console.capture() as captured:
        for paragraph in (command.help or "").split("\n\n"):
            console.print(Text(" ".join(paragraph.split())), end="\n\n")
        usage = f"{ctx.command_path} {usage_of(command, ctx)}"
        console.print(Text.assemble(("Usage: ", "bold"), usage), soft_wrap=True)
        for heading, rows in [*sections_of(command, ctx), *(more or {}).items()]:
            console.print(Text(f"\n{heading}:", "bold"))
            console.print(_columns(rows))
        if command.epilog:
            console.print(Text("\nExamples:", "bold"))
            for line in command.epilog.splitlines():
                console.print(Text(f"  {line}"), soft_wrap=True)
    return _TRAILING.sub("", captured.get())


def sections_of(command: Any, ctx: Any) -> list[tuple[str, Sequence[tuple[str, str]]]]:
    """Headings with what stands under them: commands, arguments, options, and last those that all commands have."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name in command.list_commands(ctx) if hasattr(command, "list_commands") else ():
        one = command.get_command(ctx, name)
        found.setdefault(_heading(one) or "Commands", []).append((name, (one.help or "").partition("\n\n")[0]))
    params = [one for one in command.get_params(ctx) if not getattr(one, "hidden", False)]
    for param in params:
        found.setdefault(_heading_of(param), []).append((_flags(param), _about(param)))
    if _GENERAL in found:
        found[_GENERAL] = found.pop(_GENERAL)
    return list(found.items())


def _heading_of(param: Any) -> str:
    if _is_argument(param):
        return "Arguments"
    return _GENERAL if param.name in _OF_ALL else _heading(param) or _OWN


def _heading(one: Any) -> str | None:
    heading = getattr(one, "rich_help_panel", None)
    return heading if isinstance(heading, str) else None


def usage_of(command: Any, ctx: Any) -> str:
    """What may follow the command's name."""
    names = [_flags(one) if one.required else f"[{_flags(one)}]" for one in command.params if _is_argument(one)]
    return " ".join(["[OPTIONS]", *names, *(["COMMAND"] if hasattr(command, "list_commands") else [])])


def _is_argument(param: Any) -> bool:
    return not param.opts[0].startswith("-")


def _flags(param: Any) -> str:
    if _is_argument(param):
        return str(param.metavar or param.name).upper()
    names = sorted(param.opts, key=len)
    if param.secondary_opts:
        names = [f"{param.opts[0]}/{param.secondary_opts[0]}"]
    shown = ", ".join(names) if len(names[0]) == 2 else f"    {', '.join(names)}"
    if getattr(param, "is_flag", False):
        return shown
    return f"{shown} {param.metavar or 'VALUE'}"


def _about(param: Any) -> str:
    text = str(getattr(param, "help", None) or "").removesuffix(".")
    said = getattr(param, "show_default", None)  # a text names what stands for None
    default = said if isinstance(said, str) else param.default
    shown = None if callable(default) or default in (None, False) else default
    if param.required:
        return f"{text} (required)"
    return f"{text} (default: {shown})" if shown is not None and getattr(param, "show_default", True) else text


def _columns(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, min_width=_LEAST_FLAGS)
    table.add_column()
    for flags, about in rows:
        table.add_row(Text(f"  {flags}", "cyan"), Text(" ".join(about.split())))
    return table
