"""A plan and what it depends on. Everything in the key is compared before a plan is used."""

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
    """What a plan depends on.

    Attributes:
        network: The ONNX file's name, such as ``denoiser.onnx``.
        source: SHA-256 over the ONNX file and its weights.
        library: ``tensorrt`` or ``tensorrt_rtx``.
        version: Of that library.
        target: What it runs on.
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
        """As JSON says it."""
        config: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PlanKey:
        """From what ``config`` said.

        Raises:
            ValueError: If a value is out of bounds.
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
        """Sixteen characters of a SHA-256 that tell this key from others."""
        text = json.dumps({"format_version": FORMAT_VERSION, **self.config}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def differences(self, wanted: PlanKey) -> list[str]:
        """In words, where this differs from what is wanted; empty if a plan of this key may be used for that."""
        found, asked = self.config, wanted.config
        told = [
            f"{name} is {found[name]!r}, not {asked[name]!r}"
            for name in ("network", "source", "library", "version", "profiles", "pixels_per_cell", "options")
            if found[name] != asked[name]
        ]
        if not self.target.covers(wanted.target):
            told.append(f"it is for {self.target}, not {wanted.target}")
        return told


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
        """Of the data."""
        return hashlib.sha256(self.data).hexdigest()
