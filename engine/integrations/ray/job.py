"""The job of ``stepfuse batch`` on a Ray cluster: its parts are what Ray Data hands to actors that draw them.

A part that is written is whole, and one that is not is drawn again: by Ray after a worker or a node has gone, by the
next run after the job itself was ended.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import fields
from typing import Any

import ray
import ray.data
import ray.exceptions

from stepfuse.batch.job import Job, Tally
from stepfuse.errors import StepfuseError

_FIELDS = [one.name for one in fields(Tally)]


class PartDrawer:
    """Draws parts of a job, for ``map_batches``: loads the model once.

    Args:
        job: The job, whose files are where every node finds them.
        retry_failed: Whether rows that failed before are drawn again.

    Raises:
        FileNotFoundError: If this node does not see the job's folder.
    """

    def __init__(self, job: Job, *, retry_failed: bool) -> None:
        if not job.folder.is_dir():
            raise FileNotFoundError(f"{job.folder} must be a folder that every node of the cluster sees")
        self._job, self._retry_failed = job, retry_failed
        self._opened = job.drawer()
        self._drawer = self._opened.__enter__()  # until the actor ends

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Draws and writes parts; returns a tally of each."""
        found = []
        for number in batch["part"]:
            tallies = self._job.run(self._drawer, part=int(number), retry_failed=self._retry_failed)
            found.append(sum(tallies, Tally()))
        return {name: [getattr(one, name) for one in found] for name in _FIELDS}


def run_job(
    job: Job, rows: int, *, address: str, actors: int | None = None, retry_failed: bool = False
) -> Generator[Tally, None, None]:
    """Runs a job on a Ray cluster, one part a task. ``Job.opened`` is held meanwhile.

    Args:
        job: The job: its table, folder and model are where every node finds them.
        rows: Of its table.
        address: Of the cluster, as ``ray.init`` takes it; ``local`` starts one on this machine. A session that this
            process has begun already is used as it is.
        actors: Processes that draw, each with a model of its own; None is one a node.
        retry_failed: Whether rows that failed before are drawn again.

    Returns:
        A tally of each part, as it ends.

    Raises:
        ConnectionError: If there is no cluster.
        StepfuseError: If a part cannot be drawn for a reason that is not a row's own.
    """
    started = not ray.is_initialized()
    if started:
        ray.init(address=address, log_to_driver=False)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        parts = ray.data.from_items([{"part": part} for part in range(-(-rows // job.part_rows))])
        drawn = parts.map_batches(
            PartDrawer,
            batch_size=1,
            fn_constructor_args=(job,),
            fn_constructor_kwargs={"retry_failed": retry_failed},
            compute=ray.data.ActorPoolStrategy(size=actors or max(len(nodes), 1)),
            num_gpus=0 if job.device == "cpu" else 1,
            scheduling_strategy="SPREAD",
        )
        for found in drawn.iter_rows():
            yield Tally(**{name: found[name] for name in _FIELDS})
    except ray.exceptions.RayError as error:
        why = str(error).strip().splitlines()[-1]  # behind the traceback of an actor
        raise StepfuseError(f"the job ended on the cluster, and goes on when it is run again: {why}") from error
    finally:
        if started:
            ray.shutdown()
