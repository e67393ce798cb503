"""Parts that are one file: shards of WebDataset, and parquet."""

from __future__ import annotations

import io
import json
import tarfile
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from stepfuse.batch.parts import Part, line_of
from stepfuse.batch.records import Drawn, arrow_table
from stepfuse.files.atomic import scratch_beside, sync

_AT_A_TIME = 64  # rows of a parquet file that are held


class ShardPart(Part):
    """A part that is one file, written beside its place and renamed."""

    suffix: str

    def __init__(
        self, folder: Path, number: int, *, retry_failed: bool, image_format: str, keep: tuple[str, ...]
    ) -> None:
        self.image_format, self.keep = image_format, keep
        self._file = folder / f"{number:06}{self.suffix}"
        self._stack: ExitStack | None = None
        super().__init__(folder, number, retry_failed=retry_failed)

    def file_of(self, row: int) -> str:
        """``000000.tar``."""
        return self._file.name

    def add(self, row: int, drawn: Drawn) -> dict[str, Any]:
        """Writes a row that was drawn or kept; returns its record."""
        if self._stack is None:
            self._stack = ExitStack()
            self._scratch = self._stack.enter_context(scratch_beside(self._file))
            self._begin()
        record = super().add(row, drawn)
        self._write(row, drawn, record)
        return record

    def commit(self) -> None:
        """Puts the shard into its place, and then its records."""
        self._end()
        sync(self._scratch)
        self._scratch.replace(self._file)
        sync(self.folder)
        super().commit()

    def close(self) -> None:
        """Removes it, unless it was renamed."""
        if self._stack is not None:
            self._stack.close()
            self._stack = None

    def _is_whole(self) -> bool:
        return self._file.is_file()

    def _kept(self) -> Mapping[int, Drawn]:
        """Of a shard that is there, whose failed rows are drawn again: the others, which the new one takes over."""
        images = self._images() if self.written else {}
        return {row: Drawn(one.record, images[row]) for row, one in self.written.items() if row in images}

    @abstractmethod
    def _images(self) -> Mapping[int, bytes]: ...

    @abstractmethod
    def _begin(self) -> None: ...

    @abstractmethod
    def _write(self, row: int, drawn: Drawn, record: dict[str, Any]) -> None: ...

    @abstractmethod
    def _end(self) -> None: ...


class WebDatasetPart(ShardPart):
    """A tar of ``000000012.png`` and ``000000012.json`` a row; a row that failed is in the records alone."""

    suffix = ".tar"

    def _images(self) -> Mapping[int, bytes]:
        with tarfile.open(self._file) as tar:
            return {
                int(name): tar.extractfile(one).read()  # type: ignore[union-attr]
                for one in tar
                for name, _, kind in [one.name.partition(".")]
                if kind == self.image_format
            }

    def _begin(self) -> None:
        assert self._stack is not None
        self._tar = self._stack.enter_context(tarfile.TarFile(self._scratch, "w", format=tarfile.USTAR_FORMAT))

    def _write(self, row: int, drawn: Drawn, record: dict[str, Any]) -> None:
        if drawn.image is not None:
            self._member(f"{row:09}.{self.image_format}", drawn.image)
            self._member(f"{row:09}.json", line_of(record).encode("ascii"))

    def _member(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))

    def _end(self) -> None:
        self._tar.close()


class ParquetPart(ShardPart):
    """A parquet file of a row each: its number, its record and the picture's file, null where it failed.

    Columns that are kept are texts, those that are none as JSON.
    """

    suffix = ".parquet"

    def _images(self) -> Mapping[int, bytes]:
        from pyarrow.parquet import read_table

        table = read_table(self._file, columns=["row", "image"])
        rows, images = table["row"].to_pylist(), table["image"].to_pylist()
        return {row: image for row, image in zip(rows, images, strict=True) if image is not None}

    def _begin(self) -> None:
        self._rows: list[tuple[int, Drawn]] = []
        self._writer: Any = None

    def _write(self, row: int, drawn: Drawn, record: dict[str, Any]) -> None:
        self._rows.append((row, drawn))
        if len(self._rows) == _AT_A_TIME:
            self._flush()

    def _flush(self) -> None:
        kept = {name: ("string", [_as_text(drawn.record.get(name)) for _, drawn in self._rows]) for name in self.keep}
        table = arrow_table([drawn for _, drawn in self._rows], row=("int64", [row for row, _ in self._rows]), **kept)
        if self._writer is None:
            from pyarrow.parquet import ParquetWriter

            assert self._stack is not None
            self._writer = self._stack.enter_context(ParquetWriter(self._scratch, table.schema))
        self._writer.write_table(table)
        self._rows = []

    def _end(self) -> None:
        if self._rows or self._writer is None:
            self._flush()
        self._writer.close()


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, default=str)
