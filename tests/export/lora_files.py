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


ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CONVOLUTIONS = ["conv1", "conv2", "conv_in", "conv_out", "conv_shortcut", "downsamplers.0.conv", "proj_in", "proj_out"]
UNET = [*ATTENTION, "ff.net.0.proj", "ff.net.2", "time_emb_proj", "linear_1", "linear_2", *CONVOLUTIONS]
CLIP = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def random_state(name, layers, *, seed=4, rank=2):
    """Random LoRAs of the layers of each part of a tiny pipeline, with the keys that published files have."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from peft.utils import get_peft_model_state_dict

    pipe, state = tiny_pipelines.tiny_pipeline(name), {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part, targets in layers.items():
            module = getattr(pipe, part)
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights=False)
            inject_adapter_in_model(config, module)
            for key, value in get_peft_model_state_dict(module).items():
                inner = "text_model." if part.startswith("text") and not key.startswith("text_model.") else ""
                state[f"{part}.{inner}{key}"] = value.contiguous()
    return state


def write_random_lora(path, name, layers, **options):
    """The same as a file, which is returned."""
    from safetensors.torch import save_file

    save_file(random_state(name, layers, **options), path)
    return path
