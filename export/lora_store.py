"""Which LoRAs a bundle holds, and what the weights were before them."""

from __future__ import annotations

ORIGINALS = "lora_originals.safetensors"  # a file of the bundle
LORAS = "loras"  # in a manifest's export entry: name, sha256, scale of each, the first fused first
