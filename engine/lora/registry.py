"""What engines and pipelines have alike where requests choose LoRAs: their registration."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping

from stepfuse.lora.adapters import Adapters, LoraInfo, require_adapters


class LoraRegistry(ABC):
    """LoRAs by the names that requests choose them by, beside the requests that run."""

    def add_lora(self, name: str, file: str | os.PathLike[str]) -> None:
        """Registers a LoRA, which calls and requests then choose by its name. Those that run go on meanwhile.

        Args:
            name: What requests call it.
            file: A safetensors file, with keys as diffusers, PEFT or kohya's scripts write them. Its factors are kept,
                and not the file.

        Raises:
            LoraError: If the file is no LoRA of a supported kind, does not fit the networks, among which an ``Engine``
                has no text encoder, or its factors do not fit ``lora_bytes``.
            ValueError: If there is no ``lora_bytes``, or the name is registered already.
            EngineClosed: If the engine or pipeline is closed.

        Examples:
            >>> with sf.TextToImage.load("my-pipeline", lora_bytes=1_000_000) as pipe:
            ...     pipe.add_lora("style", "style.safetensors")
            ...     pictures = pipe("a red cat", lora={"style": 0.8}, steps=2, seed=0)
        """
        self._open_adapters().add(name, file)

    def remove_lora(self, name: str) -> None:
        """Takes a LoRA's name away, which is free then; requests that have chosen it are drawn with it all the same.

        Its memory is freed with the last of these.

        Raises:
            ValueError: If none is registered under this name.
            EngineClosed: If the engine or pipeline is closed.

        Examples:
            >>> with sf.Engine.load("my-pipeline", lora_bytes=1_000_000) as engine:
            ...     engine.add_lora("style", "style.safetensors")
            ...     engine.remove_lora("style")
            ...     len(engine.loras)
            0
        """
        self._open_adapters().remove(name)

    @property
    def loras(self) -> Mapping[str, LoraInfo]:
        """The LoRAs that are registered, by name; empty where there are none to be.

        Examples:
            >>> with sf.Engine.load("my-pipeline", lora_bytes=1_000_000) as engine:
            ...     engine.add_lora("style", "style.safetensors")
            ...     engine.loras["style"].weights
            1
        """
        adapters = self._adapters()
        return {} if adapters is None else adapters.infos

    @abstractmethod
    def _adapters(self) -> Adapters | None:
        """What holds them; None: nothing does."""

    @abstractmethod
    def _require_open(self) -> None:
        """Raises ``EngineClosed`` if this is closed."""

    def _open_adapters(self) -> Adapters:
        self._require_open()
        return require_adapters(self._adapters())
