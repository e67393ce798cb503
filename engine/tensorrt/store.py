"""Plans kept in a bundle or in a folder of their own: found by their keys, and checked whenever one is loaded."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from stepfuse.bundle.cache import change_cache
from stepfuse.bundle.folder import CACHE, read_folder
from stepfuse.bundle.open_file import OpenFile
from stepfuse.errors import BundleError, PlanError
from stepfuse.files.atomic import locked, write_atomically
from stepfuse.files.strict_json import parse_json
from stepfuse.tensorrt.plan import FORMAT_VERSION, Plan, PlanKey

log = logging.getLogger(__name__)
_LONGEST = 1 << 20  # bytes of a description


class PlanStore:
    """A folder of plans. Each has two files, named by the digests of its key and of its content.

    ``KEY-PLAN.json`` has the plan's key, size and SHA-256; ``KEY-PLAN.plan`` is the plan. In a bundle they are under
    ``plans/`` and in the manifest, like all of its files.
    """

    def __init__(self, folder: str | os.PathLike[str], *, bundle: bool) -> None:
        self._root = Path(folder)
        self._bundle = bundle
        self._plans = self._root / CACHE if bundle else self._root

    def find(self, key: PlanKey) -> Plan | None:
        """A plan that may be used for ``key``: of the same key, or built ahead of time for its GPU among others.

        Raises:
            PlanError: If there is such a plan, but its content is not as described.
        """
        for name, about in self._descriptions():
            if not about.key.differences(key):
                return Plan(about.key, self._checked(name, about), about.seconds)
        return None

    def libraries(self, network: str) -> set[str]:
        """Names of the libraries that have built the plans of a network."""
        return {about.key.library for _, about in self._descriptions() if about.key.network == network}

    def best(self, network: str, unfit: Callable[[PlanKey], list[str]], rank: Callable[[PlanKey], Any]) -> StoredPlan:
        """The plan of the highest rank among those that fit, whose content is not read yet.

        Args:
            network: Name of the ONNX file.
            unfit: In words, why a plan of this key cannot be used; empty if it can.
            rank: Sort key; of equal ranks a plan that was built on the GPU itself goes before one built ahead of time.

        Raises:
            PlanError: If none fits, with the reasons of the nearest one.
        """
        fitting, reasons = [], []
        for name, about in self._descriptions():
            if about.key.network != network:
                continue
            if differences := unfit(about.key):
                reasons.append((len(differences), f"{name}: {'; '.join(differences)}"))
            else:
                fitting.append((name, about))
        if not fitting:
            raise PlanError(min(reasons)[1] if reasons else f"there is none of {network}")
        name, about = max(fitting, key=lambda one: rank(one[1].key))
        return StoredPlan(name, about.key, lambda: Plan(about.key, self._checked(name, about), about.seconds))

    def nearest(self, key: PlanKey) -> str:
        """In words, why no plan fits: the differences of the one that has the fewest."""
        reasons = [
            (len(differences), f"{name}: {'; '.join(differences)}")
            for name, about in self._descriptions()
            if about.key.network == key.network and (differences := about.key.differences(key))
        ]
        return min(reasons)[1] if reasons else f"there is none of {key.network}"

    def check_writable(self) -> None:
        """Checks that plans can be kept, before one is built.

        Raises:
            PlanError: If a folder is not writable.
        """
        for folder in (self._root, self._root.parent) if self._bundle else (self._root,):
            if not os.access(folder, os.W_OK):
                raise PlanError(f"{folder} must be writable to keep plans here: give a folder as cache")

    def put(self, plan: Plan) -> None:
        """Adds a plan, and removes others of the same key. Hold ``locked()``.

        Raises:
            PlanError: If the store cannot be written to.
        """
        digest = sha256(plan.data).hexdigest()
        stem = f"{plan.key.digest}-{digest[:16]}"
        about = {
            "format_version": FORMAT_VERSION,
            "key": plan.key.config,
            "size": memoryview(plan.data).nbytes,
            "sha256": digest,
            "seconds": round(plan.seconds, 3),
        }
        text = (json.dumps(about, indent=2) + "\n").encode()
        old = [file.name for file in self._plans.glob(f"{plan.key.digest}-*")]
        self._change({f"{stem}.plan": plan.data, f"{stem}.json": text}, old)

    def clear(self) -> list[str]:
        """Removes all plans, and returns their names."""
        with self.locked():
            names = sorted(file.name for file in self._plans.glob("*-*.*") if file.suffix in (".plan", ".json"))
            self._change({}, names)
        return [name for name in names if name.endswith(".plan")]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the store: one build at a time, and a process that waited finds the plan of the one before."""
        with locked(self._root):
            yield

    def _change(self, add: Mapping[str, bytes | memoryview], remove: list[str]) -> None:
        try:
            if self._bundle:
                change_cache(
                    self._root,
                    {CACHE + name: content for name, content in add.items()},
                    [CACHE + name for name in remove],
                )
                return
            for name in remove:
                (self._plans / name).unlink(missing_ok=True)
            for name, content in add.items():
                write_atomically(self._plans / name, partial(Path.write_bytes, data=content))
        except OSError as error:
            raise PlanError(f"{self._root}: plans cannot be kept here ({error}): give a folder as cache") from error

    def _descriptions(self) -> Iterator[tuple[str, _Description]]:
        """Name and description of each plan: those built on the GPU itself, then those built ahead of time.

        Descriptions that cannot be read, or in a bundle are not as its manifest lists them, are logged and skipped.
        """
        listed = read_folder(self._root, verify=False)["files"] if self._bundle else None
        found = []
        for file in sorted(self._plans.glob("*-*.json")):
            name = file.with_suffix(".plan").name
            if listed is not None and not {CACHE + file.name, CACHE + name} <= listed.keys():
                continue
            try:
                content = _content(file, _LONGEST)
                about = _Description(parse_json(content))
            except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
                log.warning("%s is no description of a plan (%s): it is passed over", file, error)
                continue
            if listed is not None:
                digests = sha256(content).hexdigest(), about.sha256
                if digests != (listed[CACHE + file.name]["sha256"], listed[CACHE + name]["sha256"]):
                    log.warning("%s is not as the manifest lists it: it is passed over", file)
                    continue
            if name != f"{about.key.digest}-{about.sha256[:16]}.plan":
                log.warning("%s describes another plan than its name says: it is passed over", file)
                continue
            found.append((name, about))
        yield from sorted(found, key=lambda one: one[1].key.target.ahead)

    def _checked(self, name: str, about: _Description) -> bytes:
        file = self._plans / name
        try:
            data = _content(file, about.size)
        except (OSError, BundleError) as error:
            raise PlanError(f"{file} must be a plan, but is not readable: {error}") from error
        digest = sha256(data).hexdigest()
        if len(data) != about.size or digest != about.sha256:
            raise PlanError(
                f"{file} must be {about.size} bytes with sha256 {about.sha256}, got {len(data)} with {digest}: the plan"
                " was changed, delete it"
            )
        return data


@dataclass(frozen=True)
class StoredPlan:
    """A plan in a store.

    Attributes:
        name: Of its file, which has the digests of its key and of its content.
        key: Its key.
        load: Reads it; raises PlanError if its content is not as described.
    """

    name: str
    key: PlanKey
    load: Callable[[], Plan] = field(compare=False, repr=False)


class _Description:
    """A plan's JSON, read. Wrong JSON raises ValueError, TypeError, KeyError or AttributeError."""

    def __init__(self, about: Any) -> None:
        if about["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version must be {FORMAT_VERSION}, got {about['format_version']!r}")
        self.key = PlanKey.from_config(about["key"])
        self.size, self.sha256, self.seconds = int(about["size"]), str(about["sha256"]), float(about["seconds"])


def _content(file: Path, most: int) -> bytes:
    opened = OpenFile(file)
    if opened.size > most:
        raise BundleError(f"{file} must have at most {most} bytes, got {opened.size}")
    return opened.read()
