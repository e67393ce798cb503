"""Text to image: a whole pipeline on ONNX Runtime, from prompts to pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from stepfuse.backends.host.onnxruntime import open_session
from stepfuse.bundle.bundle import Bundle
from stepfuse.engine import Engine
from stepfuse.errors import BundleError
from stepfuse.pipeline.engines import Engines, Shape
from stepfuse.pipeline.pictures import Array, Pictures, from_masks, from_pictures, size_of, to_pixels
from stepfuse.pipeline.prompts import PromptEncoder
from stepfuse.pipeline.size import pixels_of, rows_for, sample_shape
from stepfuse.pipeline.vae import Tile, Vae
from stepfuse.requests.resolution import Compiler, seeds_of, starting_state
from stepfuse.samplers.noise import POSTERIOR, normal
from stepfuse.samplers.table import StepTable
from stepfuse.serving.batch import Callback
from stepfuse.serving.config import Serving
from stepfuse.serving.stats import EngineStats

Embeddings = Mapping[str, npt.ArrayLike]


class TextToImage:
    """Draws pictures of prompts. Made by ``load``; a context manager, or to be closed.

    Calls from any number of threads are safe, and those that draw one size share the denoiser's forwards.
    Torch, transformers and diffusers are not needed.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int = 0,
        spinning: bool = True,
        serving: Serving | None = None,
        max_rows: int | None = None,
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
        self._vae = Vae(bundle, threads=threads, tile=tile)
        session = open_session(bundle.denoiser, threads=threads, spinning=spinning)

        def make(shape: Shape) -> Engine:
            rows = max_rows if max_rows is not None or serving is not None else rows_for(self._pipeline, shape)
            return Engine.load(bundle, shape=shape, session=session, serving=serving, max_rows=rows)

        self._engines = Engines(make)
        with self._engines.use(bundle.info.shape):  # a network that does not fit its manifest is found here
            pass

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | Bundle,
        *,
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
            max_rows: Most rows of one forward of the denoiser; a guided picture takes two. By default as many as hold
                1024 x 1024 pixels, from 2 to 64. What does not fit takes turns.
            threads: ONNX Runtime's threads inside an operator; 0 is a thread a core.
            spinning: Whether the denoiser's idle threads wait actively: lowest latency, but a busy core.
            serving: More of how calls share the denoiser, as ``Engine.load`` takes it.
            verify: Whether checksums are compared; False trusts the files' sizes.
            tile: Side in pixels of the tiles that a large picture is decoded in: ``auto``, a number, or None for never;
                ``stepfuse.pipeline.vae.Vae`` says more.

        Raises:
            BundleError: If the bundle cannot be used.
            ImportError: If ``tokenizers`` is not installed.
            ValueError: If the bundle takes no prompts, or an argument is out of bounds.
        """
        bundle = path if isinstance(path, Bundle) else Bundle.load(path, verify=verify)
        return cls(bundle, threads=threads, spinning=spinning, serving=serving, max_rows=max_rows, tile=tile)

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
        """Draws ``num_images`` pictures of each prompt, those of the first prompt first: n in all.

        Args:
            prompt: What to draw, or a list.
            negative_prompt: What guidance leads away from: one for all, or one a prompt.
            width: In pixels; None is that of ``image`` or ``latents``, or the model's own.
            height: In pixels, likewise.
            num_images: Pictures of each prompt.
            sampler: A name of ``stepfuse.samplers.SAMPLERS``; None is the model's default, as are the next three.
            steps: Number of steps.
            guidance_scale: 1 is no guidance, and half the work; 0 draws the negative prompt (where diffusers takes
                anything up to 1 for no guidance).
            eta: DDIM's share of added noise, 0 to 1.
            seed: 0 to 2^64 - 1. With one seed s for all, picture i has seed s + i; None draws one.
            latents: Starting noise, shape (n, C, h, w), standard normal; None draws it from the seed.
            prompt_embeds: Instead of ``prompt``, what ``encode_prompt`` returns; a conditioning input that no prompt
                feeds can be told here, too.
            negative_prompt_embeds: Instead of ``negative_prompt``.
            image: What the pictures begin as, noised, or what ``mask`` keeps of them: a Pillow image, which is scaled
                to ``width`` and ``height`` if these are given, or floating point (H, W, 3), 0 to 1; or as many as there
                are prompts or pictures.
            mask: White, or 1, where ``image`` is drawn anew, black where it stays: as ``image``, without channels.
            strength: Share of the steps that ``image`` leaves, above 0 to 1; None is 0.8, and 1 with a mask.
            sample_posterior: Whether ``image`` is encoded as a draw of the VAE's posterior by the picture's seed, as
                diffusers does, instead of its mean.
            progress: Whether a bar is shown.
            callback: As in ``Engine.sample``: ``callback(step, total, latents)`` with the clean samples implied so far,
                which ``decode`` makes pictures of; False stops the run there.
            **options: The sampler's own: ``spacing``, ``karras``, ``guidance_rescale``, ...

        Raises:
            ValueError: If a bound is broken; the message carries the value received.
            TypeError: If an argument is of the wrong kind.
            DenoiserError: If a network fails or gives a number that is not finite.
            EngineClosed: If the pipeline is closed.

        Warns:
            PromptCutWarning: If a prompt is longer than the text encoder's context: what is not read is shown.
        """
        table = self._compiler.compile(sampler, steps, guidance_scale, eta, options)
        texts, cond = self._told("prompt", prompt, prompt_embeds)
        count = len(next(iter(cond.values())))
        n = count * _checked_number(num_images)
        seeds = seeds_of(seed, n)
        shape = self._shape(width, height, image, latents)
        width, height = pixels_of(self._pipeline, shape)
        noise = None if latents is None else starting_state((n, *shape), latents, "latents")
        if self._pipeline.size_input is not None:
            size = np.array([[height, width, 0, 0, height, width]], dtype=np.float32)
            cond = {self._pipeline.size_input: size, **cond}
        negative_texts: list[str] = []
        negative: dict[str, npt.NDArray[Any]] | None = None
        if (table["g"] != 1).any():
            negative_texts, told = self._told_negative(negative_prompt, negative_prompt_embeds, count)
            negative = {name: _spread(name, told.get(name, cond[name]), count, n) for name in cond}
        known: dict[str, Any] = {}
        if image is not None:
            known["image"] = self._begin(from_pictures(image, width, height), count, seeds, sample_posterior)
        if mask is not None:
            masks = from_masks(mask, width, height, self._pipeline.pixels_per_latent)
            known["mask"] = _spread("mask", masks, count, n)
        with self._engines.use(shape) as engine:
            samples = engine.sample(
                n,
                cond={name: _spread(name, rows, count, n) for name, rows in cond.items()},
                negative_cond=negative,
                table=table,
                seed=seeds,
                noise=noise,
                strength=strength,
                progress=progress,
                callback=callback,
                **known,
            )
            pixels = self.decode(samples)
        facts = [
            self._facts(table, seeds[i], _text_of(texts, i, n), _text_of(negative_texts, i, n), strength)
            for i in range(n)
        ]
        return Pictures(pixels, samples, facts, seeds)

    def encode_prompt(self, prompt: str | Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """What the denoiser is told for a prompt, or for each of a list.

        Returns:
            By conditioning input: shape (n, *shape of the input), n = 1 for one prompt.

        Raises:
            ValueError: If the list is empty.
            TypeError: If a prompt is no text.
            DenoiserError: If the text encoder fails.

        Warns:
            PromptCutWarning: If a prompt is longer than the text encoder's context.
        """
        return self._prompts.encode(_texts("prompt", prompt))

    def decode(self, latents: npt.ArrayLike) -> Array:
        """Pictures of the denoiser's samples.

        Args:
            latents: Shape (n, C, h, w).

        Returns:
            Shape (n, H, W, 3), float32, 0 to 1.

        Raises:
            ValueError: If the shape is another.
            DenoiserError: If the decoder fails.
        """
        samples = np.asarray(latents, dtype=np.float32)
        if samples.ndim != 4 or not len(samples) or samples.shape[1] != self._model.shape[0]:
            raise ValueError(f"latents must have shape (n, {self._model.shape[0]}, h, w), got {samples.shape}")
        return to_pixels(self._vae.decode(samples), (-1.0, 1.0))

    def encode_image(self, image: Any, *, sample_posterior: bool = False, seed: int | Sequence[int] = 0) -> Array:
        """Samples that decode to pictures.

        Args:
            image: A Pillow image or a list of them of one size, or floating point (H, W, 3) or (n, H, W, 3), 0 to 1.
            sample_posterior: Whether a draw of the posterior is returned instead of its mean.
            seed: Of that draw, as in a call.

        Returns:
            Shape (n, C, h, w), float32.

        Raises:
            ValueError: If a shape or value is out of bounds.
            TypeError: If the image is of another kind.
            BundleError: If the bundle has no VAE encoder.
            DenoiserError: If the encoder fails.
        """
        size = size_of(image)
        if size is None:
            raise TypeError(f"image must be Pillow images or an array (n, H, W, 3), got {type(image).__name__}")
        shape = sample_shape(self._model, self._pipeline, *size)
        pictures = from_pictures(image, *pixels_of(self._pipeline, shape))
        return self._begin(pictures, len(pictures), seeds_of(seed, len(pictures)), sample_posterior)

    def stats(self) -> dict[tuple[int, int], EngineStats]:
        """``Engine.stats`` of the denoiser by (width, height): of the sizes that were drawn last."""
        engines = self._engines.all().items()
        return {pixels_of(self._pipeline, shape): engine.stats() for shape, engine in engines}

    def close(self) -> None:
        """Lets calls under way finish, then frees the networks; closing twice is fine.

        Raises:
            RuntimeError: If called from a callback.
        """
        self._engines.close()
        self._prompts.close()
        self._vae.close()

    def _told(
        self, name: str, prompt: str | Sequence[str] | None, embeds: Embeddings | None
    ) -> tuple[list[str], dict[str, npt.NDArray[Any]]]:
        """The prompts, none if embeddings were given, and what the denoiser is told, a row a prompt."""
        if (prompt is None) == (embeds is None):
            raise ValueError(f"give {name} or {name}_embeds, and not both")
        if prompt is not None:
            texts = _texts(name, prompt)
            return texts, self._prompts.encode(texts)
        if not isinstance(embeds, Mapping):
            raise TypeError(f"{name}_embeds must be a dict by conditioning input, got {type(embeds).__name__}")
        inputs, needed = self._model.cond, self._prompts.outputs
        if not set(needed) <= set(embeds) <= set(inputs):
            allowed = f"{', '.join(needed)}, and may hold others of {', '.join(inputs)}"
            raise ValueError(f"{name}_embeds must hold {allowed}, got {', '.join(map(str, embeds)) or 'nothing'}")
        found: dict[str, npt.NDArray[Any]] = {}
        for key, given in embeds.items():
            array, shape = np.asarray(given), inputs[key].shape
            found[key] = array[None] if array.shape == shape else array
            if found[key].shape[1:] != shape or not len(found[key]):
                raise ValueError(f"{key} of {name}_embeds must have shape {shape} or (n, *{shape}), got {array.shape}")
        if len({len(array) for array in found.values()} - {1}) > 1:
            lengths = ", ".join(f"{key} {len(array)}" for key, array in found.items())
            raise ValueError(f"{name}_embeds must hold as many rows of each input, got {lengths}")
        rows = max(map(len, found.values()))
        return [], {key: np.repeat(array, rows // len(array), axis=0) for key, array in found.items()}

    def _told_negative(
        self, prompt: str | Sequence[str] | None, embeds: Embeddings | None, count: int
    ) -> tuple[list[str], dict[str, npt.NDArray[Any]]]:
        """The same for the unconditional pass: a row for all, or one a prompt."""
        if prompt is None and embeds is None:
            if not self._pipeline.zeros_without_negative:
                return [], self._prompts.encode([""])
            inputs = ((name, self._model.cond[name]) for name in self._prompts.outputs)
            return [], {name: np.zeros((1, *spec.shape), dtype=spec.dtype) for name, spec in inputs}
        texts, told = self._told("negative_prompt", prompt, embeds)
        for rows in told.values():
            if len(rows) not in (1, count):
                raise ValueError(
                    f"negative_prompt must be one, or one for each of the {count} prompts, got {len(rows)}"
                )
        return texts, told

    def _shape(self, width: int | None, height: int | None, image: Any, latents: npt.ArrayLike | None) -> Shape:
        """Shape of the samples to be drawn."""
        given = size_of(image) if image is not None else None
        if given is None and latents is not None and np.ndim(latents) == 4:
            given = pixels_of(self._pipeline, np.shape(latents)[1:])
        own = given or pixels_of(self._pipeline, self._model.shape)
        return sample_shape(
            self._model, self._pipeline, own[0] if width is None else width, own[1] if height is None else height
        )

    def _begin(self, pictures: Array, count: int, seeds: Sequence[int], sample_posterior: bool) -> Array:
        """Samples of the pictures that a run begins with, one a seed."""
        mean, std = (_spread("image", rows, count, len(seeds)) for rows in self._vae.encode(pictures))
        if sample_posterior:
            mean += std * np.stack([normal(seed, mean.shape[1:], stream=POSTERIOR) for seed in seeds])
        return mean

    def _facts(self, table: StepTable, seed: int, prompt: str, negative: str, strength: float | None) -> dict[str, str]:
        scale = table.options.get("guidance_scale", 1.0)
        guided = f", guidance {scale:g}" if scale != 1 else ""
        facts = {
            "Software": f"stepfuse {version('stepfuse')}",
            "Description": f"{self.bundle.name}: {table.sampler}, {len(table)} steps{guided}, seed {seed}",
            "prompt": prompt,
            "negative_prompt": negative,
            "seed": str(seed),
            "sampler": table.sampler,
            "steps": str(len(table)),
            "guidance_scale": f"{scale:g}",
            "strength": "" if strength is None else f"{strength:g}",
        }
        return {name: fact for name, fact in facts.items() if fact}

    def __enter__(self) -> TextToImage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        width, height = pixels_of(self._pipeline, self._model.shape)
        return f"<TextToImage {self.bundle.name}, {width} x {height}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a pipeline can be neither pickled nor copied: load it in each process")


def _texts(name: str, given: str | Sequence[str]) -> list[str]:
    """Prompts as a list."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list | tuple) or not all(isinstance(one, str) for one in texts):
        raise TypeError(f"{name} must be a text or a list of texts, got {given!r}")
    if not texts:
        raise ValueError(f"{name} must hold at least one text, got {given!r}")
    return list(texts)


def _text_of(texts: Sequence[str], index: int, n: int) -> str:
    """The prompt of a picture."""
    return texts[index * len(texts) // n] if texts else ""


def _spread(name: str, rows: npt.NDArray[Any], count: int, n: int) -> npt.NDArray[Any]:
    """A row a picture, from one for all, one a prompt, or one each."""
    if len(rows) not in (1, count, n):
        raise ValueError(f"{name} must be one, or one for each of {count} prompts or {n} pictures, got {len(rows)}")
    return np.repeat(rows, n // len(rows), axis=0)


def _checked_number(given: int) -> int:
    if isinstance(given, bool) or not isinstance(given, int | np.integer):
        raise TypeError(f"num_images must be a whole number, got {given!r}")
    if given < 1:
        raise ValueError(f"num_images must be at least 1, got {given}")
    return int(given)
