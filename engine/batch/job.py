"""An offline job: a table of requests, drawn into a folder, each row once, however often it is ended and begun."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from stepfuse.arguments import whole_number
from stepfuse.batch.drawing import Drawer, in_order
from stepfuse.batch.formats import FORMATS
from stepfuse.batch.parts import FilesPart, Part
from stepfuse.batch.records import Drawn
from stepfuse.batch.rows import Row
from stepfuse.batch.settings import Settings, require_one_of
from stepfuse.batch.shards import ParquetPart, WebDatasetPart
from stepfuse.batch.tables import digest_of, read_rows
from stepfuse.bundle.bundle import Bundle
from stepfuse.bundle.identity import ModelIdentity
from stepfuse.display import NAME, brief, printable
from stepfuse.files.atomic import locked, write_atomically

_JOB = "job.json"
_PART = re.compile(r"\d{6,}(?:(?:\.partial)?\.jsonl|\.tar|\.parquet)?")


@dataclass(frozen=True)
class Tally:
    """What became of rows.

    Attributes:
        drawn: Rows that were drawn.
        kept: Rows that were written before.
        failed: Rows without a picture, in this run or before.
        failure: The first of them, and why; empty where there is none.
    """

    drawn: int = 0
    kept: int = 0
    failed: int = 0
    failure: str = ""

    @property
    def rows(self) -> int:
        """All of them."""
        return self.drawn + self.kept + self.failed

    def __add__(self, other: Tally) -> Tally:
        sums = self.drawn + other.drawn, self.kept + other.kept, self.failed + other.failed
        return Tally(*sums, self.failure or other.failure)


@dataclass(frozen=True, kw_only=True)
class Job(Settings):
    """What is drawn, and where it goes.

    Attributes:
        requests: The table, as ``read_rows`` takes it.
        folder: Where it is written.
        format: One of ``FORMATS``.
        part_rows: Rows of a part, which is a shard, or a folder of files.

    Raises:
        ValueError: If an attribute is out of bounds.
    """

    requests: Path
    folder: Path
    format: str = "files"
    part_rows: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("format", self.format, FORMATS)
        if whole_number("part_rows", self.part_rows) < 1:
            raise ValueError(f"part_rows must be at least 1, got {self.part_rows}")

    @contextmanager
    def opened(self, *, force: bool = False) -> Iterator[None]:
        """Makes the folder, or goes on with what is there of this job; holds it, so that one process writes at a time.

        Args:
            force: Whether another job's parts that are there are removed.

        Raises:
            FileExistsError: If the folder holds another job, or something else, and ``force`` is not set.
            BlockingIOError: If another process writes to it.
            OSError: If it cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.folder, wait=False))
            except BlockingIOError as error:
                raise BlockingIOError(f"{self.folder} is being written to by another job: wait for its end") from error
            self._claim(force=force)
            yield

    def _claim(self, *, force: bool) -> None:
        file, own = self.folder / _JOB, self._facts()
        there = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if there != own and any(self.folder.iterdir()):
            if not force:
                differing = ", ".join(
                    f"{name} {brief(there.get(name))}" for name in {**own, **there} if there.get(name) != own.get(name)
                )
                what = f"holds another job, of {differing}" if there else "is not empty and holds no job"
                raise FileExistsError(
                    f"{self.folder} {what}: name another folder, or give --force to replace its parts"
                )
            self._clear()
        write_atomically(file, lambda scratch: scratch.write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8"))

    def _facts(self) -> dict[str, Any]:
        """What makes it this job: what its files depend on."""
        facts = {
            "requests": digest_of(self.requests),
            "model": ModelIdentity.of(Bundle.load(self.model)).files,
            "format": self.format,
            "image_format": self.image_format,
            "part_rows": self.part_rows,
            "keep": list(self.keep),
            "backend": self.backend,
            "precision": self.precision,
            "deterministic": self.deterministic,
            "max_rows": self.max_rows if self.deterministic else None,
        }
        if self.loras:  # jobs of earlier releases had none
            facts["loras"] = {name: digest_of(file) for name, file in self.loras.items()}
        return facts

    def _clear(self) -> None:
        """Removes parts: what is named as they are."""
        for path in self.folder.iterdir():
            if _PART.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def part(self, number: int, *, retry_failed: bool = False) -> Part:
        """One of its parts."""
        if self.format == "files":
            return FilesPart(self.folder, number, retry_failed=retry_failed, image_format=self.image_format)
        kind = WebDatasetPart if self.format == "webdataset" else ParquetPart
        return kind(self.folder, number, retry_failed=retry_failed, image_format=self.image_format, keep=self.keep)

    def run(
        self, drawer: Drawer, *, part: int | None = None, retry_failed: bool = False
    ) -> Generator[Tally, None, None]:
        """Draws what is not written yet, and writes it.

        Args:
            drawer: Of this job.
            part: The only one to be drawn; None is all.
            retry_failed: Whether rows that failed before are drawn again.

        Returns:
            What became of each row, in their order, once it is added to its part.

        Raises:
            OSError: If the table cannot be read or something not be written: what is written stays.
            ValueError: If the table is none.
            CudaError, EngineClosed: If the model can draw nothing any more.
        """
        start = 0 if part is None else part * self.part_rows
        rows = read_rows(self.requests, start, None if part is None else start + self.part_rows)
        tasks = in_order(self._tasks(rows, retry_failed), partial(_submit, drawer), drawer.most)
        last: Part | None = None
        try:
            for (part_of_it, row), drawn in tasks:
                if last is not part_of_it:
                    _commit(last)
                    last = part_of_it
                if not last.is_done:
                    last.add(row.number, drawn)
                if drawn.error:
                    yield Tally(failed=1, failure=f"row {row.number} (id {printable(row.id, NAME)}): {drawn.error}")
                else:
                    yield Tally(kept=1) if row.number in last.kept else Tally(drawn=1)
            _commit(last)
        finally:
            tasks.close()
            if last is not None:
                last.close()

    def _tasks(self, rows: Iterator[Row], retry_failed: bool) -> Iterator[tuple[Part, Row]]:
        for number, group in groupby(rows, lambda row: row.number // self.part_rows):
            part = self.part(number, retry_failed=retry_failed)
            for row in group:
                yield part, row


def _submit(drawer: Drawer, task: tuple[Part, Row]) -> Future[Drawn]:
    part, row = task
    if row.number not in part.kept:
        return drawer.submit(row, partial(part.place, row.number))
    kept: Future[Drawn] = Future()
    kept.set_result(part.kept[row.number])
    return kept


def _commit(part: Part | None) -> None:
    if part is not None and not part.is_done:
        part.commit()
