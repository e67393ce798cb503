"""What every command does alike: errors as one line in the command line's words, warnings likewise, exit codes."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, cast

import typer
from typer.core import TyperCommand, TyperGroup

from stepfuse.cli.console import complain
from stepfuse.cli.values import without_needless_checks
from stepfuse.cli.words import OPTIONS_ELSEWHERE, in_words_of, number_rule
from stepfuse.display import did_you_mean
from stepfuse.errors import StepfuseError

FAILED, USAGE, INTERRUPTED, TERMINATED = 1, 2, 130, 143
REGRESSION, NO_CONCLUSION = 3, 4

#: What each exit code says.
EXIT_CODES = {
    0: "Done",
    FAILED: "It failed: a file, a model, a network; silently where the reader of a pipe has gone",
    USAGE: "Wrong usage: an option, a value",
    REGRESSION: "A regression, of bench --compare",
    NO_CONCLUSION: "No conclusion, of bench --compare",
    INTERRUPTED: "Ctrl-C; what is half written is removed",
    TERMINATED: "SIGTERM; likewise",
}

#: typer has click's errors, but exports one of them alone.
_UsageError = cast("type[Exception]", typer.BadParameter.__mro__[1])


class Command(TyperCommand):
    """A command whose errors and warnings are lines of its own words; a bug in stepfuse keeps its traceback."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        settings["context_settings"] = {"help_option_names": ["-h", "--help"], **(settings["context_settings"] or {})}
        super().__init__(*args, **settings)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the help."""
        from stepfuse.cli.help import help_of  # with rich, which a run does not need

        formatter.write(help_of(self, ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the options; one that takes a single value and comes twice is refused, where click takes the last."""
        without_needless_checks(self.get_params(ctx))
        if ctx.resilient_parsing:  # a line that is not yet whole is completed
            return super().parse_args(ctx, args)
        texts, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for option in given:
            if (count := given.count(option)) > 1 and not _may_repeat(option):
                ctx.fail(f"{max(option.opts, key=len)} must be given once, got it {count} times")
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            if error.param is not None and (rule := number_rule(error.message)):
                ctx.fail(f"{max(error.param.opts, key=len)} {rule}, got {texts.get(error.param.name)!r}")
            raise

    def invoke(self, ctx: Any) -> Any:
        """Runs the command.

        Raises:
            typer.Exit: With status 2 after an argument that is refused, with 1 after any other error.
        """
        options = {param.name: max(param.opts, key=len) for param in self.params if param.opts[0].startswith("-")}

        def worded(text: object) -> str:
            return in_words_of(options, str(text))

        def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
            complain(worded(message), colour="yellow")

        try:
            with warnings.catch_warnings():
                warnings.showwarning = show_warning
                return super().invoke(ctx)
        except BrokenPipeError:
            _leave_broken_pipe()
        except (ValueError, TypeError, OSError, MemoryError, ImportError, StepfuseError) as error:
            complain(worded(_message(error)))
            refused = isinstance(error, ValueError | TypeError) and not isinstance(error, StepfuseError | OSError)
            raise typer.Exit(USAGE if refused else FAILED) from error


class Commands(TyperGroup):
    """The commands, with a suggestion for one that is misspelt and usage errors on a line that no box breaks."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs the command line, and ends the process unless ``standalone_mode`` is off; arguments are click's."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        atexit.register(gc.freeze)  # the process ends: what it leaves is not searched for cycles
        with _exit_codes():
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
            if sys.stdout is not None:  # closed by the shell's >&-
                sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the options before the command."""
        without_needless_checks(self.get_params(ctx))
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands in the order in which they were added, which older versions of click sort."""
        return list(self.commands)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the help."""
        from stepfuse.cli.help import help_of  # with rich, which a run does not need

        formatter.write(help_of(self, ctx, {"Exit codes": [(str(code), text) for code, text in EXIT_CODES.items()]}))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Finds the command that ``args`` begin with."""
        unknown = args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None
        if unknown and not ctx.resilient_parsing:
            names = self.list_commands(ctx)
            ctx.fail(f"no command {args[0]!r}{did_you_mean(args[0], names)}: there are {', '.join(names)}")
        return super().resolve_command(ctx, args)


def _message(error: BaseException) -> str:
    """An error's text; one of the system begins with the file's name, as other commands have it."""
    if isinstance(error, OSError) and error.strerror:
        file = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes | os.PathLike) else ""
        return f"{file}{error.strerror}"
    return str(error) or type(error).__name__


def _may_repeat(option: Any) -> bool:
    """Whether an option collects values, or says the same however often it is given."""
    return bool(option.multiple or (option.is_flag and not option.secondary_opts))


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Ends the process, with a line on standard error, as what is raised says."""
    try:
        yield
    except _UsageError as error:
        complain(_usage_message(error))
        if (ctx := getattr(error, "ctx", None)) is not None:
            complain(f"see {ctx.command_path} --help", mark="")
        sys.exit(USAGE)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        with suppress(typer.Exit):
            _leave_broken_pipe()
        sys.exit(FAILED)
    except OSError as error:  # of the last lines: a disk is full
        complain(_message(error))
        sys.exit(FAILED)


def _usage_message(error: Any) -> str:
    name = getattr(error, "option_name", None)
    if name is None or "o such option" not in error.format_message():
        message = str(error.format_message())
        return message[:1].lower() + message[1:]
    known: Sequence[str] = [flag for param in error.ctx.command.params for flag in param.opts] if error.ctx else ()
    ours = OPTIONS_ELSEWHERE.get(name, "")
    hint = f" (here: {ours})" if ours.split(" ")[0] in known else did_you_mean(name, known)
    return f"no option {name}{hint}"


def _leave_broken_pipe() -> NoReturn:
    """What is still buffered goes nowhere, so that Python has nothing to say about it when it ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(FAILED)
