"""``--lora NAME=FILE``: LoRAs of a run, which the network is given while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import stepfuse as sf
from stepfuse.cli.options import HOW

#: Memory that the files named may take: what the caller has named, the caller wants.
_UNBOUNDED = 1 << 50

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
        files: dict[str, Path] = {}
        scales: dict[str, float] = {}
        for text in texts or ():
            name, file, scale = _parsed(text)
            if name in files:
                raise ValueError(f"--lora {name} must be given once, got {text!r} too")
            files[name] = file
            scales[name] = recorded.get(name, {}).get("scale", 1.0) if scale is None else scale
        for name, one in recorded.items():
            if name not in files:
                raise ValueError(
                    f"the picture was drawn with the LoRA {name}, sha256 {one['sha256'][:12]}...: give its file with"
                    f" --lora {name}=FILE"
                )
        return cls(files, scales)

    @property
    def loading(self) -> dict[str, Any]:
        """More arguments of ``Engine.load`` and ``TextToImage.load``."""
        return {"lora_bytes": _UNBOUNDED} if self.files else {}

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


def _parsed(text: str) -> tuple[str, Path, float | None]:
    name, separator, rest = text.partition("=")
    if not (separator and name and rest):
        raise ValueError(f"--lora must be NAME=FILE or NAME=FILE:SCALE, got {text!r}")
    file, separator, scale = rest.rpartition(":")
    try:
        return name, Path(file), float(scale if separator and file else "")
    except ValueError:  # a colon of the file's name, or none
        return name, Path(rest), None
