"""Tables of requests in Ray Data: columns of requests in, the same with pictures and what draws them again out."""

from __future__ import annotations

import json
import logging
import os
import tarfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stepfuse.batch.drawing import Drawer
from stepfuse.batch.parts import line_of
from stepfuse.batch.records import arrow_table
from stepfuse.batch.rows import Row, present
from stepfuse.batch.settings import Settings

if TYPE_CHECKING:
    from ray.data import Dataset

logger = logging.getLogger("stepfuse.ray")

_END = 1024  # bytes of zeros that a tar ends in
_KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"RIFF": "webp"}  # what a picture's file begins with


class Sampler:
    """Draws batches of requests, for ``Dataset.map_batches`` with ``batch_format="pyarrow"``.

    Each actor loads the model once. A batch is submitted whole, so its rows share forwards. A row's picture depends on
    its seed, which follows from its id where it has none, and not on its batch, its node or how often it was tried:
    with ``deterministic`` to the bit, otherwise up to the last bits of the network's sums.

    The columns that a batch may have are those of a table of ``stepfuse batch``. It becomes the columns in ``keep``,
    those of ``stepfuse.batch.records.TYPES`` and ``image``, the picture's file. A row that fails has an ``error`` and
    no image.

    Args:
        model: An embedded model's name or a bundle's folder, which every node has.
        image_format: ``png``, ``jpeg`` or ``webp``.
        keep: Columns that no request has, which come out as they are.
        deterministic: Whether forwards are padded to ``max_rows`` rows.
        max_rows: Most rows of one forward; None is the model's.
        device: What computes, as in ``Engine.load``.
        threads: The network's threads on the CPU; with several actors a node as many as each has CPUs.
        loras: Files of LoRAs by name, which every node has, for the rows that choose them in a column ``lora``.

    Raises:
        BundleError: If the model cannot be used.
        LoraError: If a LoRA cannot be used with it.
        ValueError: If an argument is out of bounds.

    Examples:
        >>> import pyarrow
        >>> from stepfuse.integrations.ray import Sampler
        >>> sampler = Sampler("fashion", threads=1)  # Ray makes one in each actor
        >>> drawn = sampler(pyarrow.table({"id": ["a"], "prompt": ["bag"], "steps": [3], "seed": [7]}))
        >>> drawn["seed"].to_pylist(), drawn["error"].to_pylist()
        ([7], [None])
        >>> sampler.close()
    """

    def __init__(
        self,
        model: str = "fashion",
        *,
        image_format: str = "png",
        keep: Collection[str] = (),
        deterministic: bool = False,
        max_rows: int | None = None,
        device: str = "cpu",
        threads: int = 0,
        loras: Mapping[str, str | Path] | None = None,
    ) -> None:
        settings = Settings(
            model=model,
            image_format=image_format,
            keep=tuple(keep),
            deterministic=deterministic,
            max_rows=max_rows,
            device=device,
            threads=threads,
            loras={name: Path(file) for name, file in (loras or {}).items()},
        )
        self._keep = settings.keep
        self._stack = ExitStack()  # left with the actor's process
        self._drawer: Drawer = self._stack.enter_context(settings.drawer())

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Draws a batch.

        Raises:
            TypeError: If it is no ``pyarrow.Table``.
            CudaError: If the GPU fails, so that no row can be drawn.
        """
        if not isinstance(batch, pa.Table):
            rule = "a batch must be a pyarrow.Table"
            raise TypeError(f'{rule}, got {type(batch).__name__}: give map_batches batch_format="pyarrow"')
        table = arrow_table(list(self._drawer.draw(_rows(batch))))
        nameless = pa.nulls(len(batch), pa.string())
        table = table.set_column(0, "id", batch["id"].cast(pa.string()) if "id" in batch.column_names else nameless)
        for name in self._keep:
            table = table.append_column(name, batch.column(name))
        return table

    def close(self) -> None:
        """Ends the model."""
        self._stack.close()


def _rows(batch: pa.Table) -> Iterator[Row]:
    """Rows of a batch, whose place in it says nothing of them."""
    for number, fields in enumerate(batch.to_pylist()):
        nameless = present(fields.get("id")) is None and present(fields.get("seed")) is None
        yield Row(number, fields, "a row must have an id or a seed, got neither" if nameless else None)


def webdataset_columns(batch: pa.Table) -> pa.Table:
    """What ``Dataset.write_webdataset(..., encoder=None)`` takes, of what ``Sampler`` returns without failed rows.

    Args:
        batch: With the columns ``id`` and ``image`` and others, which are written as JSON.

    Returns:
        Columns ``__key__``, the id with ``%`` and two digits for what a name of a member cannot have, ``png`` (or
        ``jpg``, ``webp``) and ``json``.

    Examples:
        >>> import pyarrow
        >>> from stepfuse.integrations.ray import Sampler, webdataset_columns
        >>> drawn = Sampler("fashion")(pyarrow.table({"id": ["a"], "prompt": ["bag"], "steps": [3], "seed": [7]}))
        >>> webdataset_columns(drawn).column_names
        ['__key__', 'png', 'json']
    """
    batch = batch.filter(pc.is_valid(batch["image"]))
    images = batch["image"].to_pylist()
    kind = next((kind for begin, kind in _KINDS.items() if images and images[0].startswith(begin)), "png")
    records = batch.drop_columns(["image"]).to_pylist()
    return pa.table(
        {
            "__key__": pa.array([quote(record["id"], safe="").replace(".", "%2E") for record in records], pa.string()),
            kind: pa.array(images, pa.binary()),
            "json": pa.array([line_of(record) for record in records], pa.string()),
        }
    )


def without_written(dataset: Dataset, folder: str | Path, *, retry_failed: bool = False) -> Dataset:
    """A dataset without the rows that are written already, by their ids: what a job that was ended goes on with.

    Files of Ray Data that are half written are removed: what they hold cannot be read, and is drawn again.

    Args:
        dataset: Requests, with a column ``id``.
        folder: Where a job has written parquet or shards of WebDataset; one that is not there has nothing.
        retry_failed: Whether rows that failed are drawn again.

    Raises:
        ValueError: If the dataset has no column ``id``.

    Examples:
        >>> import ray
        >>> from stepfuse.integrations.ray import without_written
        >>> requests = without_written(ray.data.read_json("requests.jsonl"), "drawn")  # doctest: +SKIP
    """
    if "id" not in (dataset.schema() or pa.schema([])).names:
        raise ValueError("the dataset must have a column id, by which rows are known as written: it has none")
    written = pa.array(sorted(set(_written_ids(Path(folder), retry_failed=retry_failed))), pa.string())
    if not len(written):
        return dataset
    return dataset.map_batches(_without, fn_kwargs={"written": written}, batch_format="pyarrow")


def _without(batch: pa.Table, *, written: pa.Array) -> pa.Table:
    return batch.filter(pc.invert(pc.is_in(batch["id"].cast(pa.string()), value_set=written)))


def _written_ids(folder: Path, *, retry_failed: bool) -> Iterator[str]:
    for file in sorted(folder.glob("**/*.parquet")):
        try:
            table = pq.read_table(file, columns=["id", "error"], partitioning=None)
        except pa.ArrowInvalid:
            _remove(file)
            continue
        if retry_failed:
            table = table.filter(pc.is_null(table["error"]))
        yield from table["id"].to_pylist()
    for file in sorted(folder.glob("**/*.tar")):
        with file.open("rb") as shard:
            shard.seek(-min(_END, file.stat().st_size), os.SEEK_END)
            if shard.read() != bytes(_END):
                _remove(file)
                continue
        with tarfile.open(file) as tar:
            for one in tar:
                if one.name.endswith(".json") and (member := tar.extractfile(one)) is not None:
                    yield json.load(member)["id"]


def _remove(file: Path) -> None:
    logger.warning("%s is half written: it is removed, and its rows are drawn again", file)
    file.unlink()
