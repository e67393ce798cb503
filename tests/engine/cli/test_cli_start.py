"""What the command line imports before it draws, and that values which skip typer's checks are what these give."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import support
import typer
from typer.core import TyperCommand
from typer.testing import CliRunner

from stepfuse.cli.command import Command

#: Modules of other commands, of a terminal's colours, of typer's checks, of extras.
NEEDLESS = (
    *("rich", "pydantic", "torch", "onnx", "matplotlib", "scipy", "fastapi", "uvicorn", "transformers"),
    *("stepfuse.cli.serve", "stepfuse.cli.batch", "stepfuse.cli.export", "stepfuse.cli.bench", "stepfuse.cli.help"),
    *("stepfuse.server", "stepfuse.batch", "stepfuse.export", "stepfuse.analysis", "stepfuse.fitting"),
)


def imported(code, *arguments):
    """Which of some modules a process has imported at its end."""
    listing = "import sys\ntry:\n{}\nfinally: print(*[name for name in {} if name in sys.modules], file=sys.stderr)"
    program = listing.format("".join(f"    {line}\n" for line in code.splitlines()), (*NEEDLESS, "onnxruntime", "PIL"))
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr.split()


def test_sampling_imports_nothing_of_other_commands(tmp_path):
    bundle = support.write_tiny_bundle(tmp_path / "tiny")
    options = ["-n", "2", "--steps", "2", "-o", tmp_path / "grid.png"]
    code = "from stepfuse.cli import app\napp(sys.argv[1:])"
    assert imported(code, "sample", bundle.path, *options) == ["onnxruntime", "PIL"]
    assert (tmp_path / "grid.png").exists()


def test_the_package_imports_no_network_library():
    assert imported("import stepfuse") == []


def taken(cls, line):
    """What a command takes a line for, and its exit code."""
    app, found = typer.Typer(), {}

    @app.command(cls=cls)
    def command(
        text: Annotated[str | None, typer.Option()] = None,
        word: Annotated[str, typer.Option()] = "a",
        many: Annotated[list[str] | None, typer.Option()] = None,
        whole: Annotated[int | None, typer.Option(min=-2, max=1_000_000)] = None,
        plain: Annotated[int, typer.Option()] = 3,
        share: Annotated[float | None, typer.Option(min=0)] = None,
        file: Annotated[Path | None, typer.Option()] = None,
        flag: Annotated[bool | None, typer.Option("--flag/--no-flag")] = None,
        on: Annotated[bool, typer.Option("--on")] = False,
        upper: Annotated[str | None, typer.Option(callback=lambda value: value and value.upper())] = None,
        hexadecimal: Annotated[int | None, typer.Option(parser=lambda text: int(text, 16))] = None,
    ) -> None:
        found.update(locals())

    code = CliRunner().invoke(app, line).exit_code
    return {name: (type(value), value) for name, value in found.items() if name not in ("app", "found")}, code


NUMBERS = (
    "5",
    "+5",
    "-2",
    "-3",
    "007",
    " 5",
    "5 ",
    "",
    "5.0",
    "1e3",
    "1_000",
    "٣",
    "1000000",
    "1000001",
    "9" * 30,
    "x",
)


@pytest.mark.parametrize(
    "line",
    [
        [],
        ["--text", "x", "--word", ""],
        ["--many", "a", "--many", "b"],
        ["--many", ""],
        *(["--whole", number] for number in NUMBERS),
        *(["--plain", number] for number in NUMBERS),
        ["--share", "0.5", "--file", "a.png", "--flag", "--on"],
        ["--share", "-1"],
        ["--no-flag"],
        ["--upper", "a", "--hexadecimal", "ff"],
    ],
    ids=" ".join,
)
def test_values_are_those_that_typer_gives(line):
    assert taken(Command, line) == taken(TyperCommand, line)
