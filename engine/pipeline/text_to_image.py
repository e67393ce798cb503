"""Text to image: a whole pipeline on ONNX Runtime, from prompts to pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from stepfuse.arguments import number, whole_number
from stepfuse.backends.cuda.config import Cuda, device_of
from stepfuse.backends.host.onnxruntime import open_session
from stepfuse.bundle.bundle import DENOISER, Bundle
from stepfuse.display import NAME, printable
from stepfuse.engine import Engine
from stepfuse.errors import BundleError
from stepfuse.pipeline.conditioning import Conditioning, Embeddings, PromptConditioning, as_texts, row_per_picture
from stepfuse.pipeline.drawn import StopWatch, batches, facts, record
from stepfuse.pipeline.engines import Engines, Shape
from stepfuse.pipeline.input_images import from_masks, from_pictures, shown, size_of
from stepfuse.pipeline.pictures import Array, Pictures, to_pixels
from stepfuse.pipeline.prompts import PromptEncoder
from stepfuse.pipeline.provenance import digest_of
from stepfuse.pipeline.size import pixels_of, require_memory, rows_for, sample_shape
from stepfuse.pipeline.vae import Tile, Vae
from stepfuse.requests.editing import IMAGE_STRENGTH, strength_of_flow
from stepfuse.requests.resolution import Compiler, seeds_of, starting_state
from stepfuse.samplers.noise import POSTERIOR, normal
from stepfuse.serving.batch import Callback
from stepfuse.serving.config import Serving
from stepfuse.serving.stats import EngineStats


class TextToImage:
    """Samples pictures of prompts. Made by ``load``; a context manager, or to be closed.

    Calls from any number of threads are safe, and those of one size share the denoiser's forwards.
    Torch, transformers and diffusers are not needed.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int = 0,
        spinning: bool = True,
        serving: Serving | None = None,
        tile: Tile = "auto",
    ) -> None:
        if bundle.pipeline is None or not bundle.pipeline.prompts:
            raise ValueError(f"a bundle must be a pipeline's with prompts, {bundle.path} is not: load it with Engine")
        if len(bundle.info.shape) != 3:
            raise BundleError(f"{bundle.path}: a pipeline's samples must have shape (C, h, w), got {bundle.info.shape}")
        self.bundle = bundle
        self._model, self._pipeline = bundle.info, bundle.pipeline
        self._compiler = Compiler(bundle.info)
        self._prompts = PromptEncoder(bundle, threads=threads)
        self._conditioning = PromptConditioning(self._model, self._pipeline, self._prompts)
        self._vae = Vae(bundle, threads=threads, tile=tile)
        session = open_session(bundle.networks[DENOISER], threads=threads, spinning=spinning)
        shared = serving or Serving()

        def make(shape: Shape) -> Engine:
            rows = rows_for(self._pipeline, shape) if shared.max_rows is None else shared.max_rows
            return Engine.load(bundle, shape=shape, session=session, serving=replace(shared, max_rows=rows))

        self._engines = Engines(make)
        with self._engines.use(bundle.info.shape):  # raises if the network does not fit its manifest
            pass

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | Bundle,
        *,
        device: str | Cuda = "cpu",
        max_rows: int | None = None,
        threads: int = 0,
        spinning: bool = True,
        serving: Serving | None = None,
        verify: bool = True,
        tile: Tile = "auto",
    ) -> TextToImage:
        """Loads a bundle that ``stepfuse export`` has made of a diffusers pipeline.

        Args:
            path: The bundle's folder, or a bundle that is loaded already.
            device: ``cpu``, the only one for now; ``Engine.load`` runs the denoiser by itself on a GPU.
            max_rows: Most rows of one forward of the denoiser; a guided picture takes two. By default as many as hold
                1024 x 1024 pixels, from 2 to 64. Rows beyond that wait for later forwards.
            threads: ONNX Runtime's threads inside an operator; 0 is a thread a core.
            spinning: Whether the denoiser's idle threads wait actively: lowest latency, but a busy core.
            serving: How calls share the denoiser, as in ``Engine.load``; ``max_rows`` changes what it says.
            verify: Whether checksums are compared; False trusts the files' sizes.
            tile: Side in pixels of the tiles that a large picture is decoded in: ``auto``, a number, or None for never;
                ``stepfuse.pipeline.vae.Vae`` says more.

        Raises:
            BundleError: If the bundle cannot be used.
            ImportError: If ``tokenizers`` is not installed.
            ValueError: If ``device`` is not the CPU, the bundle takes no prompts, ``max_rows`` is below 1, or ``Vae``
                refuses ``tile``.
        """
        if device_of(device) is not None:
            raise ValueError(
                f"device must be 'cpu' for a whole pipeline, which runs on the CPU for now, got {device!r}:"
                " Engine.load(bundle, device=...) runs its denoiser by itself on a GPU"
            )
        bundle = path if isinstance(path, Bundle) else Bundle.load(path, verify=verify)
        if max_rows is not None:
            serving = replace(serving or Serving(), max_rows=max_rows)
        return cls(bundle, threads=threads, spinning=spinning, serving=serving, tile=tile)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        width: int | None = None,
        height: int | None = None,
        num_images: int = 1,
        sampler: str | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        eta: float | None = None,
        seed: int | Sequence[int] | None = None,
        latents: npt.ArrayLike | None = None,
        prompt_embeds: Embeddings | None = None,
        negative_prompt_embeds: Embeddings | None = None,
        image: Any = None,
        mask: Any = None,
        strength: float | None = None,
        sample_posterior: bool = False,
        progress: bool = False,
        callback: Callback | None = None,
        **options: Any,
    ) -> Pictures:
        """Samples ``num_images`` pictures of each prompt, those of the first prompt first: n in all.

        Args:
            prompt: What the picture shows, or a list.
            negative_prompt: What guidance leads away from: one for all, or one a prompt.
            width: In pixels; None is the width of ``image`` or ``latents``, or the model's own.
            height: In pixels, likewise.
            num_images: Pictures of each prompt.
            sampler: A name of ``stepfuse.samplers.SAMPLERS``; None is the model's default, as are the next three.
            steps: Number of steps.
            guidance_scale: 1 is no guidance, and half the passes; 0 samples the negative prompt (diffusers takes
                anything up to 1 as no guidance).
            eta: DDIM's share of added noise, 0 to 1.
            seed: 0 to 2^64 - 1. With one seed s for all, picture i has seed s + i; None is a random one.
            latents: Starting noise, shape (n, C, h, w), standard normal; None generates it from the seed.
            prompt_embeds: Instead of ``prompt``, what ``encode_prompt`` returns; it may also hold conditioning inputs
                that no prompt feeds.
            negative_prompt_embeds: Instead of ``negative_prompt``.
            image: What the pictures begin as, noised, or with ``mask`` the known region: a Pillow image, which is
                scaled to ``width`` and ``height`` if these are given, or floating point (H, W, 3), 0 to 1; or as many
                as there are prompts or pictures. A Pillow image is taken as a viewer shows it
                (``stepfuse.pipeline.shown_picture.as_shown``): upright, transparency on white.
            mask: White, or 1, where ``image`` is repainted, black, or 0, in the known region; values between blend the
                two. As ``image``, without channels; a transparent one is refused.
            strength: Share of the steps that are taken from ``image`` on, above 0 to 1; None is 0.8, and 1 with a mask.
                Steps that are not whole are rounded as in diffusers: down, and up in pipelines of flow models.
            sample_posterior: Whether ``image`` is encoded as a sample of the VAE's posterior by the picture's seed, as
                diffusers does, instead of as its mean.
            progress: Whether a bar is shown.
            callback: As in ``Engine.sample``: ``callback(step, total, latents)`` with the clean samples implied so far,
                which ``decode`` makes pictures of; False stops the run there.
            **options: The sampler's own: ``spacing``, ``karras``, ``guidance_rescale``, ...

        Raises:
            ValueError: If neither or both of ``prompt`` and ``prompt_embeds`` are given; if the sampler refuses
                ``steps``, ``guidance_scale``, ``eta`` or an option; if the pipeline cannot sample the size; if
                ``num_images`` is below 1, the pictures do not fit the machine's memory, a prompt has more than
                16,384 characters, a seed outside 0 to 2^64 - 1, ``strength`` outside 0 to 1 or given without an
                image, or a value of ``image`` or ``mask`` outside 0 to 1; if an array has another shape, or a list
                another length. The message says the rule and the value.
            TypeError: If an argument has the wrong type, or the sampler lacks an option.
            BundleError: If ``image`` is given and the bundle has no VAE encoder.
            DenoiserError: If a network fails or its output is not finite.
            EngineClosed: If the pipeline is closed.

        Warns:
            PromptCutWarning: If a prompt is longer than the text encoder's context: what is not read is shown.
        """
        table = self._compiler.compile(sampler, steps, guidance_scale, eta, options)
        image = shown("image", image, "RGB")
        shape = self._shape(width, height, image, latents)
        if prompt is not None:  # before each of many is encoded
            prompts = len(as_texts("prompt", prompt))
            require_memory(self._model, self._pipeline, shape, prompts * _checked_count(num_images))
        texts, cond = self._conditioning.conditional(prompt, prompt_embeds)
        count = len(next(iter(cond.values())))
        n = count * _checked_count(num_images)
        require_memory(self._model, self._pipeline, shape, n)
        seeds = seeds_of(seed, n)
        width, height = pixels_of(self._pipeline, shape)
        noise = None if latents is None else starting_state((n, *shape), latents, "latents")
        if self._pipeline.size_input is not None:
            size = np.array([[height, width, 0, 0, height, width]], dtype=np.float32)
            cond = {self._pipeline.size_input: size, **cond}
        negative_texts: list[str] = []
        negative: Conditioning | None = None
        if (table["g"] != 1).any():
            negative_texts, uncond = self._conditioning.unconditional(negative_prompt, negative_prompt_embeds, count)
            negative = {name: row_per_picture(name, uncond.get(name, cond[name]), count, n) for name in cond}
        starts = masks = pictures = None
        if image is not None:
            pictures = from_pictures(image, width, height)
            starts = self._encoded(pictures, count, seeds, sample_posterior)
        if mask is not None:
            cells = from_masks(mask, width, height, self._pipeline.pixels_per_latent)
            masks = row_per_picture("mask", cells, count, n)
        share = strength
        if self._model.schedule.is_flow and image is not None and (strength is not None or mask is None):
            share = IMAGE_STRENGTH if strength is None else number("strength", strength)
            share = strength_of_flow(share, len(table))
        watch = None if callback is None else StopWatch(callback)
        with self._engines.use(shape) as engine:
            samples = engine.sample(
                n,
                cond={name: row_per_picture(name, rows, count, n) for name, rows in cond.items()},
                negative_cond=negative,
                table=table,
                seed=seeds,
                noise=noise,
                image=starts,
                mask=masks,
                strength=share,
                progress=progress,
                callback=watch,
            )
            pixels = self.decode(samples)
        made = [
            record(
                engine,
                table,
                seeds[i],
                strength=strength,
                flow_strength=share,
                image=_row_of(pictures, i, n),
                mask=_row_of(masks, i, n),
                noise=_row_of(noise, i, n),
                stopped_after=None if watch is None else watch.stopped_after,
                prompt=_text_of(texts, i, n) if texts else None,
                negative_prompt=_text_of(negative_texts, i, n) or None,
                width=width,
                height=height,
                sample_posterior=sample_posterior and image is not None,
                batch=batch,
                **({} if texts else {"cond": [{name: digest_of(rows) for name, rows in cond.items()}]}),
            )
            for i, batch in enumerate(batches(seeds, alike=count == 1))
        ]
        return Pictures(pixels, samples, [facts(one) for one in made], seeds)

    def encode_prompt(self, prompt: str | Sequence[str]) -> Conditioning:
        """The denoiser's conditioning for a prompt, or for each of a list.

        Returns:
            By conditioning input: shape (n, *shape of the input), n = 1 for one prompt.

        Raises:
            ValueError: If the list is empty.
            TypeError: If a prompt is not a text.
            DenoiserError: If the text encoder fails.

        Warns:
            PromptCutWarning: If a prompt is longer than the text encoder's context.
        """
        return self._prompts.encode(as_texts("prompt", prompt))

    def decode(self, latents: npt.ArrayLike) -> Array:
        """Pictures of the denoiser's samples.

        Args:
            latents: Shape (n, C, h, w).

        Returns:
            Shape (n, H, W, 3), float32, 0 to 1.

        Raises:
            ValueError: If ``latents`` has another shape.
            DenoiserError: If the decoder fails.
        """
        samples = np.asarray(latents, dtype=np.float32)
        if samples.ndim != 4 or not len(samples) or samples.shape[1] != self._model.shape[0]:
            raise ValueError(f"latents must have shape (n, {self._model.shape[0]}, h, w), got {samples.shape}")
        return to_pixels(self._vae.decode(samples), (-1.0, 1.0))

    def encode_image(self, image: Any, *, sample_posterior: bool = False, seed: int | Sequence[int] = 0) -> Array:
        """Samples that ``decode`` makes these pictures of.

        Args:
            image: A Pillow image or a list of them of one size, or floating point (H, W, 3) or (n, H, W, 3), 0 to 1.
            sample_posterior: Whether a sample of the posterior is returned instead of its mean.
            seed: Of that sample, as in a call.

        Returns:
            Shape (n, C, h, w), float32.

        Raises:
            ValueError: If the pipeline cannot sample the size, a seed is outside 0 to 2^64 - 1, or a value is not
                between 0 and 1.
            TypeError: If ``image`` is neither Pillow images nor an array of floating point.
            BundleError: If the bundle has no VAE encoder.
            DenoiserError: If the encoder fails.
        """
        image = shown("image", image, "RGB")
        size = size_of(image)
        if size is None:
            raise TypeError(f"image must be Pillow images or an array (n, H, W, 3), got {type(image).__name__}")
        shape = sample_shape(self._model, self._pipeline, *size)
        pictures = from_pictures(image, *pixels_of(self._pipeline, shape))
        return self._encoded(pictures, len(pictures), seeds_of(seed, len(pictures)), sample_posterior)

    def stats(self) -> dict[tuple[int, int], EngineStats]:
        """``Engine.stats`` of the denoiser by (width, height), for the sizes sampled last."""
        engines = self._engines.all().items()
        return {pixels_of(self._pipeline, shape): engine.stats() for shape, engine in engines}

    def close(self) -> None:
        """Waits for calls in progress, then frees the networks; closing twice is fine.

        Raises:
            RuntimeError: If called from a callback.
        """
        self._engines.close()
        self._prompts.close()
        self._vae.close()

    def _shape(self, width: int | None, height: int | None, image: Any, latents: npt.ArrayLike | None) -> Shape:
        """Shape of the samples."""
        given = None
        if image is not None and (width is None or height is None):
            given = size_of(image)
        if given is None and latents is not None and np.ndim(latents) == 4:
            given = pixels_of(self._pipeline, np.shape(latents)[1:])
        own = given or pixels_of(self._pipeline, self._model.shape)
        return sample_shape(
            self._model, self._pipeline, own[0] if width is None else width, own[1] if height is None else height
        )

    def _encoded(self, pictures: Array, count: int, seeds: Sequence[int], sample_posterior: bool) -> Array:
        """Latents of pictures, one a seed."""
        mean, std = (row_per_picture("image", rows, count, len(seeds)) for rows in self._vae.encode(pictures))
        if sample_posterior:
            mean += std * np.stack([normal(seed, mean.shape[1:], stream=POSTERIOR) for seed in seeds])
        return mean

    def __enter__(self) -> TextToImage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        width, height = pixels_of(self._pipeline, self._model.shape)
        return f"<TextToImage {printable(self.bundle.name, NAME)}, {width} x {height}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a pipeline can be neither pickled nor copied: load it in each process")


def _row_of(rows: Array | None, index: int, n: int) -> Array | None:
    """What an array of one row, or one a prompt or a picture, holds for a picture."""
    return None if rows is None else rows[index * len(rows) // n]


def _text_of(texts: Sequence[str], index: int, n: int) -> str:
    """The prompt of a picture."""
    return texts[index * len(texts) // n] if texts else ""


def _checked_count(given: int) -> int:
    count = whole_number("num_images", given)
    if count < 1:
        raise ValueError(f"num_images must be at least 1, got {count}")
    return count
