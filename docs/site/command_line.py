"""The page of the command line: each command's usage, options and examples, as ``--help`` has them."""

from __future__ import annotations

from collections.abc import Iterator

import typer.main

from stepfuse.cli.app import app
from stepfuse.cli.help import sections_of, usage_of

_INTRODUCTION = """# Command line

Made of the program itself: what `stepfuse COMMAND --help` shows. [The command line in use](../commands.md) says what
the commands have in common: files, patterns of names, pipes, exit codes.
"""


def pages() -> Iterator[tuple[str, str]]:
    """One page with all commands."""
    root = typer.main.get_command(app)
    parts = [_INTRODUCTION]
    for name, command in root.commands.items():
        context = typer.Context(command, info_name=f"stepfuse {name}")
        about = "\n\n".join(" ".join(part.split()) for part in (command.help or "").split("\n\n"))
        parts.append(f"## stepfuse {name}\n\n{about}\n\n```text\nstepfuse {name} {usage_of(command, context)}\n```")
        for heading, rows in sections_of(command, context):
            table = [f"| {heading} | |", "|---|---|"]
            table += [f"| `{flags.strip()}` | {_cell(text)} |" for flags, text in rows]
            parts.append("\n".join(table))
        parts.append(f"```sh\n{command.epilog}\n```")
    yield "reference/command-line.md", "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
