"""Formats that a batch reads and writes. It imports nothing, so that the command line can list them at once."""

from __future__ import annotations

SUFFIXES = (".jsonl", ".ndjson", ".csv", ".parquet")  # of tables of requests
FORMATS = ("files", "webdataset", "parquet")  # of what is written
IMAGE_FORMATS = ("png", "jpeg", "webp")
