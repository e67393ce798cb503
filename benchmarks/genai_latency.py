"""A picture of a prompt by OpenVINO GenAI's text-to-image pipeline and by ours: latency and peak memory.

Both have the same weights and latents, and OpenVINO under them, in float32 and in bfloat16. Each way is a process of
its own, as in ``pipeline_latency.py``.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from picture_processes import Comparison
from sd_pipelines import (
    GUIDANCE,
    NEGATIVE,
    PROMPT,
    SIZES,
    TOKENS,
    Generate,
    Picture,
    latents,
    pipeline_of,
    save_with_bundle,
    text_to_image,
)

PEER = "OpenVINO GenAI"
CUT = 1 / 255  # GenAI cuts its pictures to whole numbers from 0 to 255

UNFAIR = (
    "Weights are random: pictures are noise, times and memory are those of any weights.",
    "GenAI's networks are converted from the torch modules, as optimum-intel does; ours from the bundle's ONNX files.",
    "Ours has OpenVINO run the denoiser; text encoder and VAE run in ONNX Runtime, in float32 always.",
    "GenAI's picture is a tensor of whole numbers; ours is float32, and its file's text entries are made as well.",
    "Peak memory is the kernel's largest resident set, shared libraries and the load of the weights included.",
    "Loading is not timed: GenAI compiles its networks then, ours when it first draws.",
)


def save(size: str, scratch: Path) -> int:
    """Writes a pipeline, its bundle, and its networks as GenAI reads them, into ``openvino``."""
    import torch

    parameters = save_with_bundle(size, scratch)
    pipe, out = pipeline_of(scratch / "pipeline"), scratch / "openvino"
    side, width = pipe.unet.config.sample_size, pipe.unet.config.cross_attention_dim
    for part in ("scheduler", "tokenizer", "unet", "text_encoder"):
        shutil.copytree(scratch / "pipeline" / part, out / part, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copytree(scratch / "pipeline" / "vae", out / "vae_decoder", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copy(scratch / "pipeline" / "model_index.json", out)
    states, embeds = torch.randn(2, 4, side, side), torch.randn(2, TOKENS, width)
    unet = {"sample": states, "timestep": torch.tensor([1]), "encoder_hidden_states": embeds}
    write = partial(_write, out)
    write("unet", lambda *given: pipe.unet(*given, return_dict=False)[0], pipe.unet, unet, ("out_sample",))
    ids = {"input_ids": torch.ones(2, TOKENS, dtype=torch.long)}
    names = "last_hidden_state", "pooler_output"
    write("text_encoder", lambda ids: pipe.text_encoder(ids, return_dict=False), pipe.text_encoder, ids, names)
    decode = {"latent_sample": states[:1]}
    write("vae_decoder", lambda x: pipe.vae.decode(x, return_dict=False)[0], pipe.vae, decode, ("sample",))
    _write_tokenizer(pipe.tokenizer, out / "tokenizer")
    return parameters


def genai(size: str, folder: Path, bundle: Path, steps: int, *, precision: str) -> Generate:
    """OpenVINO GenAI's own pipeline."""
    import openvino_genai

    class Given(openvino_genai.Generator):  # type: ignore[misc]
        """Has the noise that all ways start from."""

        def randn_tensor(self, shape: Any) -> Any:
            import openvino

            return openvino.Tensor(latents(size).reshape(tuple(shape)))

    pipe = openvino_genai.Text2ImagePipeline(
        str(folder.with_name("openvino")), "CPU", INFERENCE_PRECISION_HINT=precision
    )
    arguments = {"negative_prompt": NEGATIVE, "num_inference_steps": steps, "guidance_scale": GUIDANCE}
    side = SIZES[size][0]

    def generate() -> Picture:
        levels = np.asarray(pipe.generate(PROMPT, width=side, height=side, generator=Given(), **arguments).data)[0]
        picture: Picture = levels.astype(np.float32) / 255
        return picture

    return generate


WAYS: Mapping[str, Callable[[str, Path, Path, int], Generate]] = {
    PEER: partial(genai, precision="f32"),
    "TextToImage, OpenVINO": partial(text_to_image, backend="openvino"),
    "TextToImage, ONNX Runtime": text_to_image,
    f"{PEER}, bf16": partial(genai, precision="bf16"),
    "TextToImage, OpenVINO, bf16": partial(text_to_image, backend="openvino", precision="bf16"),
}


def _write(
    out: Path, part: str, forward: Callable[..., Any], module: Any, given: Mapping[str, Any], outputs: tuple[str, ...]
) -> None:
    """Writes a network of named inputs and outputs, converted by OpenVINO."""
    import openvino
    import torch

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *given: Any) -> Any:
            return forward(*given)

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = openvino.convert_model(Wrapped().eval(), example_input=tuple(given.values()))
    for ports, names in ((model.inputs, given), (model.outputs, outputs)):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
    openvino.save_model(model, out / part / "openvino_model.xml", compress_to_fp16=False)


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    import openvino
    from openvino_tokenizers import convert_tokenizer

    openvino.save_model(convert_tokenizer(tokenizer), folder / "openvino_tokenizer.xml")


COMPARISON = Comparison(
    script=__file__,
    about=__doc__,
    save=save,
    ways=WAYS,
    peer=PEER,
    bounds={way: 0.1 if way.endswith("bf16") else 1e-3 + CUT for way in WAYS},
    unfair=UNFAIR,
)

if __name__ == "__main__":
    COMPARISON.run()
