"""Tables of requests, read a row at a time: JSONL, CSV and parquet."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from stepfuse.batch.formats import SUFFIXES
from stepfuse.batch.rows import Row
from stepfuse.display import brief
from stepfuse.extras import pip_install
from stepfuse.files.strict_json import parse_json

_MOST_BYTES = 1 << 20  # of a line: a file without line ends must not fill the memory
_CHUNK = 1 << 20


def read_rows(table: Path, start: int = 0, stop: int | None = None) -> Iterator[Row]:
    """Rows ``start`` to ``stop`` of a table. A row that cannot be read is one with an error.

    Args:
        table: A ``.jsonl`` (or ``.ndjson``) file, an object a line; a ``.csv`` with names of columns in its first line,
            where an empty cell is what is left out; or a ``.parquet`` file.
        start: The first row, from 0.
        stop: The row that is the first after them; None reads to the end.

    Raises:
        ValueError: If the suffix is another, or a CSV is no UTF-8 or broken.
        ImportError: If it is parquet and pyarrow is missing.
        OSError: If it cannot be read.
    """
    readers = {".csv": _csv_rows, ".parquet": _parquet_rows}
    yield from islice(
        readers.get(require_table(table), _jsonl_rows)(table, start), None if stop is None else stop - start
    )


def count_rows(table: Path) -> int:
    """How many rows a table has. Raises as ``read_rows`` does."""
    suffix = require_table(table)
    if suffix == ".parquet":
        return int(_parquet_file(table).metadata.num_rows)
    return sum(1 for _ in (_csv_rows(table, 0) if suffix == ".csv" else _lines(table)))


def digest_of(path: Path) -> str:
    """SHA-256 of the file.

    Raises:
        OSError: If it cannot be read.
    """
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def require_table(table: Path) -> str:
    """The suffix of a table's name, in lower case.

    Raises:
        ValueError: If there is no reader for it.
    """
    suffix = table.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"requests must be a table that ends in {', '.join(SUFFIXES)}, got {table.name!r}")
    return suffix


def _lines(table: Path) -> Iterator[bytes]:
    """Lines that are not blank, without their ends; a longer one than there may be is cut behind that length."""
    with table.open("rb") as file:
        begin = file.read(3)
        if begin != b"\xef\xbb\xbf":  # a byte order mark
            file.seek(0)
        while line := file.readline(_MOST_BYTES + 1):
            rest = line
            while len(rest) > _MOST_BYTES and not rest.endswith(b"\n"):
                rest = file.readline(_MOST_BYTES + 1)
            if line.strip():
                yield line.rstrip(b"\r\n")


def _jsonl_rows(table: Path, start: int) -> Iterator[Row]:
    for number, line in enumerate(islice(_lines(table), start, None), start):
        try:
            if len(line) > _MOST_BYTES:
                raise ValueError(f"it is longer than {_MOST_BYTES:,} bytes")
            fields = parse_json(line)
            if not isinstance(fields, dict):
                raise ValueError(f"it is {brief(fields)}")
        except ValueError as error:
            yield Row(number, {}, f"a line must be an object of JSON: {error}")
        else:
            yield Row(number, fields)


def _csv_rows(table: Path, start: int) -> Iterator[Row]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for number, given in enumerate(islice(reader, start, None), start):
                fields: dict[Any, Any] = dict(given)
                if None in fields:  # where csv puts the cells that are too many
                    columns = len(reader.fieldnames or ())
                    yield Row(number, {}, f"a row must have {columns} cells, got {brief(fields[None])} more")
                else:
                    yield Row(number, {name: one for name, one in fields.items() if one != "" or name == "prompt"})
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"requests must be a CSV file in UTF-8, {table} is not: {error}") from error


def _parquet_rows(table: Path, start: int) -> Iterator[Row]:
    number = 0
    for batch in _parquet_file(table).iter_batches(batch_size=1024):
        for fields in batch.slice(max(start - number, 0)).to_pylist() if number + len(batch) > start else ():
            yield Row(max(start, number), fields)
            start = max(start, number) + 1
        number += len(batch)


def _parquet_file(table: Path) -> Any:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise ImportError(f"a parquet table needs {error.name}: {pip_install('ray')}") from error
    try:
        return ParquetFile(table)
    except ArrowInvalid as error:
        raise ValueError(f"requests must be a parquet file, {table} is not: {error}") from error
