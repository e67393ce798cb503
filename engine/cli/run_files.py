"""The files of a run of ``stepfuse sample``: one of all samples, or one of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from stepfuse.cli.common import refuse
from stepfuse.cli.file_names import check_pattern, file_name, is_pattern
from stepfuse.cli.options import OUTPUT, Force
from stepfuse.cli.target import STDOUT, Target, prepare_all, target_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".npy")


@dataclass(frozen=True)
class Writing:
    """How files of a run are written."""

    force: Force = False
    skip_existing: Annotated[
        bool,
        typer.Option(
            "--skip-existing",
            help="Keep files that are there, draw the others: goes on with a run.",
            rich_help_panel=OUTPUT,
        ),
    ] = False
    format: Annotated[
        str | None, typer.Option(metavar="NAME", help="png, jpg, webp or npy, with --output -.", rich_help_panel=OUTPUT)
    ] = None


@dataclass(frozen=True)
class RunFiles:
    """Where the samples of a run go.

    Attributes:
        targets: One a sample; all the same where they share a file.
        shared: Whether they do.
    """

    targets: Sequence[Target]
    shared: bool

    @property
    def is_stdout(self) -> bool:
        """Whether standard output carries them."""
        return self.targets[0].is_stdout

    def left(self, writing: Writing, *, way_out: str = ", or --skip-existing to draw what is missing") -> list[int]:
        """The samples that are to be drawn, by number, after a look at whether they can be written.

        Args:
            writing: What becomes of files that are there.
            way_out: What the error of a file that is there offers beside ``--force``.

        Raises:
            FileExistsError: If a file is there and is neither to be replaced nor to be kept.
            OSError: If one cannot be written.
            ValueError: If options exclude each other, or standard output is a terminal.
        """
        if writing.skip_existing:
            refuse("keeps what --force replaces: give one of them", skip_existing=writing.force or None)
            refuse("needs a file, --output - is none", skip_existing=self.is_stdout or None)
        left = [i for i, one in enumerate(self.targets) if not (writing.skip_existing and one.exists)]
        prepare_all([self.targets[i] for i in left], force=writing.force, way_out=way_out)
        return left


def files_of(
    output: str,
    samples: Sequence[Mapping[str, Any]],
    *,
    model: str,
    together: Collection[str],
    format: str | None,
) -> RunFiles:
    """The files that ``--output`` names for the samples of a run.

    Args:
        output: A file, a pattern of files or ``-``.
        samples: What a pattern may say of each: its index, seed, prompt or cond.
        model: The model's name, for patterns.
        together: Suffixes of files that hold all samples where there is no pattern.
        format: That of standard output.

    Raises:
        ValueError: If a suffix or the pattern is wrong, two samples would have one file, or several pictures standard
            output.
    """
    if is_pattern(output):
        check_pattern(output)
        names = [file_name(output, model=model, **fields) for fields in samples]
        if len(set(names)) < len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise ValueError(f"--output must name each sample, by {{index}} or {{seed}}: {twice} comes twice")
        return RunFiles([target_of(name, SUFFIXES, format=format) for name in names], shared=False)
    target = target_of(output, SUFFIXES, format=format)
    if target.suffix in together:
        return RunFiles([target] * len(samples), shared=True)
    if len(samples) == 1:
        return RunFiles([target], shared=False)
    if target.is_stdout:
        raise ValueError(f"--output {STDOUT} must be one picture, got {len(samples)}: give --format npy for all in one")
    return RunFiles([target.named(fields["seed"]) for fields in samples], shared=False)
