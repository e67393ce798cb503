"""The networks of a bundle that take LoRAs while they run."""

from __future__ import annotations

from collections.abc import Sequence

from stepfuse.arguments import whole_number
from stepfuse.bundle.bundle import QUANTIZATION, Bundle
from stepfuse.errors import LoraError
from stepfuse.lora.adapters import Adapters


class AdaptedNetworks:
    """The graphs of networks with inputs for factors, until a session has been made of each, and their LoRAs.

    Attributes:
        adapters: The LoRAs.
    """

    def __init__(self, bundle: Bundle, models: Sequence[str], most_bytes: int) -> None:
        from stepfuse.lora.graph import adaptable  # for LoRAs alone, which most engines do not have

        graphs = {model: adaptable(bundle.networks[model]) for model in models}
        self._contents = {model: graph.content for model, graph in graphs.items()}
        weights = [weight for graph in graphs.values() for weight in graph.weights]
        self.adapters = Adapters(bundle.path, weights, most_bytes)

    @classmethod
    def of(cls, bundle: Bundle, models: Sequence[str], lora_bytes: int, backend: object) -> AdaptedNetworks | None:
        """Those of a bundle, as ``lora_bytes`` of ``Engine.load`` says; None for 0.

        Args:
            bundle: The model.
            models: ONNX files of the networks.
            lora_bytes: Memory for factors.
            backend: What runs the denoiser.

        Raises:
            LoraError: If the bundle is in int8, or a graph does not say how it holds its weights.
            ValueError: If ``lora_bytes`` is negative, or given for another back end than ONNX Runtime.
            TypeError: If it is not a whole number.
        """
        if whole_number("lora_bytes", lora_bytes) < 0:
            raise ValueError(f"lora_bytes must be at least 0, got {lora_bytes}")
        if lora_bytes == 0:
            return None
        if backend != "onnxruntime":
            raise ValueError(
                f"lora_bytes must be left out for backend {backend!r}, got {lora_bytes}: ONNX Runtime takes LoRAs while"
                " it runs, and 'stepfuse lora' fuses one into a bundle for any back end"
            )
        if QUANTIZATION in bundle.export:
            raise LoraError(
                f"{bundle.path} is in int8, which a LoRA cannot be added to: fuse it first ('stepfuse lora'), then"
                " quantize"
            )
        return cls(bundle, models, lora_bytes)

    def take(self, model: str) -> bytes:
        """The graph of a network, given away: as much memory as its weights that lie in it."""
        return self._contents.pop(model)
