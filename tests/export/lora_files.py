"""LoRA files for tests of documents."""

import numpy as np
import tiny_pipelines


def write_lora(path):
    """A LoRA of two weights of the tiny pipeline's UNet."""
    from safetensors.numpy import save_file

    unet = tiny_pipelines.tiny_pipeline("StableDiffusionPipeline").unet
    name, layer = next((name, layer) for name, layer in unet.named_modules() if name.endswith("attn1.to_q"))
    out, wide = layer.weight.shape
    down, up = np.full((2, wide), 0.1, np.float32), np.full((out, 2), 0.1, np.float32)
    save_file({f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}, path)
