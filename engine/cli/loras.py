"""``--lora NAME=FILE``: LoRAs of a run, which the network is given while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import stepfuse as sf
from stepfuse.cli.named_files import named_files
from stepfuse.cli.options import HOW
from stepfuse.lora.adapters import UNBOUNDED

Lora = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=FILE",
        help="A LoRA, a .safetensors file, with a scale behind a colon: style=style.safetensors:0.8; repeat it.",
        rich_help_panel=HOW,
    ),
]


@dataclass(frozen=True)
class Loras:
    """LoRAs by name: their files and scales.

    Attributes:
        files: Where each lies.
        scales: Of each.
    """

    files: Mapping[str, Path]
    scales: Mapping[str, float]

    @classmethod
    def of(cls, texts: Sequence[str] | None, recorded: Mapping[str, Mapping[str, Any]] | None = None) -> Loras:
        """Those of ``--lora``.

        Args:
            texts: As they are typed.
            recorded: What a picture says of those that it was drawn with: their scales hold where none is typed.

        Raises:
            ValueError: If one is not NAME=FILE or NAME=FILE:SCALE, a name comes twice, or a LoRA of the picture is
                missing.
        """
        recorded = recorded or {}
        given = named_files("--lora", texts)
        files = {name: one.path for name, one in given.items()}
        scales = {
            name: recorded.get(name, {}).get("scale", 1.0) if one.scale is None else one.scale
            for name, one in given.items()
        }
        for name, one in recorded.items():
            if name not in files:
                which = f", sha256 {one['sha256'][:12]}..." if "sha256" in one else ""
                raise ValueError(
                    f"the picture was drawn with the LoRA {name}{which}: give its file with --lora {name}=FILE"
                )
        return cls(files, scales)

    @property
    def loading(self) -> dict[str, Any]:
        """More arguments of ``Engine.load`` and ``TextToImage.load``."""
        return {"lora_bytes": UNBOUNDED} if self.files else {}

    @property
    def chosen(self) -> dict[str, float] | None:
        """The argument of ``Engine.sample`` and a call of ``TextToImage``."""
        return dict(self.scales) or None

    def register(self, loaded: sf.Engine | sf.TextToImage) -> None:
        """Adds them to what was loaded.

        Raises:
            LoraError: If one is no LoRA or does not fit.
        """
        for name, file in self.files.items():
            loaded.add_lora(name, file)


def files_of(texts: Sequence[str] | None) -> dict[str, Path]:
    """Those of a ``--lora`` that takes no scales, since rows have them: absolute paths by name.

    Raises:
        ValueError: If one is not NAME=FILE, or a name comes twice.
    """
    given = named_files("--lora", texts)
    for name, one in given.items():
        if one.scale is not None:
            raise ValueError(f"--lora must be NAME=FILE here, as each row has its scale, got {name} with {one.scale:g}")
    return {name: one.path.absolute() for name, one in given.items()}
