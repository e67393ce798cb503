"""A job's folder, part by part: a run of rows each, written once, and known as written by their file of records.

    000000.jsonl    records of rows 0 to 999, in their order: what says that they are written
    000000/         their pictures, or
    000000.tar      a shard of WebDataset, or
    000000.parquet  records and pictures

Pictures in files are listed in ``000000.partial.jsonl`` as they come, so that a job that was killed draws none of them
again. A shard is there as a whole or not at all.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stepfuse.batch.records import Drawn
from stepfuse.files.atomic import write_atomically


class Part(ABC):
    """One part. It is opened when its first row is taken, and added to, in the order of rows, as they are drawn.

    Args:
        folder: The job's.
        number: Which part it is, from 0.
        retry_failed: Whether rows that failed are drawn again.

    Attributes:
        written: Rows that its file of records has, by their number.
        is_done: Whether it is written, and nothing of it is to be drawn again.
        kept: Rows that are not to be drawn again, by their number.
    """

    kept: Mapping[int, Drawn]

    def __init__(self, folder: Path, number: int, *, retry_failed: bool) -> None:
        self.folder, self.name = folder, f"{number:06}"
        self._records_file = folder / f"{self.name}.jsonl"
        self._records: list[dict[str, Any]] = []
        self._retry_failed = retry_failed
        self.written = {one.record["row"]: one for one in read_records(self._records_file) if self._is_whole()}
        again = retry_failed and any(one.error for one in self.written.values())
        self.is_done = bool(self.written) and not again
        self.kept = self.written if self.is_done else self._kept()

    def place(self, row: int, drawn: Drawn) -> Drawn:
        """Puts into its place what need not wait for ``add``; called on any thread, in any order."""
        return drawn

    def add(self, row: int, drawn: Drawn) -> dict[str, Any]:
        """Adds a row that was drawn or kept; returns its record as it is written."""
        record = self._entry(row, drawn)
        self._records.append(record)
        return record

    def commit(self) -> None:
        """Writes what it holds: from then on it is written.

        Raises:
            OSError: If that is not possible.
        """
        write_atomically(self._records_file, lambda file: file.write_text("".join(map(line_of, self._records))))
        self.close()

    @abstractmethod
    def file_of(self, row: int) -> str:
        """The file that has a row's picture, in the job's folder."""

    def close(self) -> None:  # noqa: B027
        """Lets go of what is half written."""

    def _entry(self, row: int, drawn: Drawn) -> dict[str, Any]:
        return {"row": row, "file": None if drawn.error else self.file_of(row), **drawn.record}

    @abstractmethod
    def _is_whole(self) -> bool:
        """Whether what its records name is there."""

    @abstractmethod
    def _kept(self) -> Mapping[int, Drawn]:
        """Rows of a part that is not done which are not to be drawn again."""


class FilesPart(Part):
    """Pictures in files of their own, in a folder a part."""

    def __init__(self, folder: Path, number: int, *, retry_failed: bool, image_format: str) -> None:
        self._image_format = image_format
        self._journal = folder / f"{number:06}.partial.jsonl"
        super().__init__(folder, number, retry_failed=retry_failed)

    def file_of(self, row: int) -> str:
        """``000000/000000012.png``."""
        return f"{self.name}/{row:09}.{self._image_format}"

    def place(self, row: int, drawn: Drawn) -> Drawn:
        """Writes the picture, and that it is there. Appending a line is one call, so threads need no lock."""
        if drawn.image is not None:
            path, content = self.folder / self.file_of(row), drawn.image
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, lambda scratch: scratch.write_bytes(content))
        with self._journal.open("ab", buffering=0) as file:
            file.write(line_of(self._entry(row, drawn)).encode("ascii"))
        return Drawn(drawn.record)

    def commit(self) -> None:
        """Writes the records; the list of what is there has served its purpose then."""
        super().commit()
        self._journal.unlink(missing_ok=True)

    def _is_whole(self) -> bool:
        return True

    def _kept(self) -> Mapping[int, Drawn]:
        if self._journal.is_file() and not self._journal.read_bytes().endswith(b"\n"):
            with self._journal.open("ab") as file:
                file.write(b"\n")  # behind a line that is torn
        listed = {one.record["row"]: one for one in read_records(self._journal)}
        return {
            row: one
            for row, one in {**self.written, **listed}.items()
            if (not self._retry_failed if one.error else (self.folder / self.file_of(row)).is_file())
        }


def line_of(record: Mapping[str, Any]) -> str:
    """A record as a line of JSON, in ASCII; what is not finite, which JSON has no number for, as a text."""
    text = json.dumps(record, default=str)
    if "NaN" in text or "Infinity" in text:
        text = json.dumps(json.loads(text, parse_constant=str))
    return text + "\n"


def read_records(file: Path) -> Iterator[Drawn]:
    """Records of a file, without pictures; of one that is not there none. A line that is torn is left out."""
    if file.is_file():
        with file.open("rb") as lines:
            for line in lines:
                try:
                    record = json.loads(line)
                    yield Drawn({**record, "row": record["row"], "error": record["error"]})
                except (ValueError, KeyError, TypeError):
                    continue
