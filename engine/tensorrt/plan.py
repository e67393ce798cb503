"""A plan and its key, which is compared before the plan is used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from stepfuse.tensorrt.options import Options
from stepfuse.tensorrt.profile import Profile
from stepfuse.tensorrt.target import Target

FORMAT_VERSION = 1


@dataclass(frozen=True)
class PlanKey:
    """All that a plan depends on.

    Attributes:
        network: The ONNX file's name, such as ``denoiser.onnx``.
        source: SHA-256 over the ONNX file and its weights.
        library: ``tensorrt`` or ``tensorrt_rtx``.
        version: The library's version.
        target: The GPU that it runs on.
        profiles: Shapes that it takes.
        pixels_per_cell: Pixels a side of one cell of a sample, for the profiles' sizes.
        options: How it was built.
    """

    network: str
    source: str
    library: str
    version: str
    target: Target
    profiles: tuple[Profile, ...]
    pixels_per_cell: int
    options: Options

    @property
    def config(self) -> dict[str, Any]:
        """The key as JSON values."""
        config: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PlanKey:
        """The key of what ``config`` returned.

        Raises:
            ValueError: If ``Target``, ``Profile`` or ``Options`` refuses a value.
            TypeError: If a name is unknown or missing.
        """
        return cls(
            **{
                **config,
                "target": Target(**config["target"]),
                "profiles": tuple(Profile(**one) for one in config["profiles"]),
                "options": Options(**config["options"]),
            }
        )

    @property
    def digest(self) -> str:
        """The first sixteen characters of the key's SHA-256."""
        text = json.dumps({"format_version": FORMAT_VERSION, **self.config}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def differences(self, wanted: PlanKey) -> list[str]:
        """In words, where this key differs from ``wanted``; empty if a plan of this key may be used for that one."""
        found, asked = self.config, wanted.config
        differences = [
            f"{name} is {found[name]!r}, not {asked[name]!r}"
            for name in ("network", "source", "library", "version", "profiles", "pixels_per_cell", "options")
            if found[name] != asked[name]
        ]
        if not self.target.covers(wanted.target):
            differences.append(f"it is for {self.target}, not {wanted.target}")
        return differences


@dataclass(frozen=True)
class Plan:
    """A built plan.

    Attributes:
        key: What it depends on.
        data: The serialised engine.
        seconds: Time that building took.
    """

    key: PlanKey
    data: bytes | memoryview
    seconds: float

    @property
    def sha256(self) -> str:
        """SHA-256 of the data."""
        return hashlib.sha256(self.data).hexdigest()
