"""Text to image: a whole pipeline on ONNX Runtime, from prompts to pictures."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from stepfuse.arguments import hinted
from stepfuse.backends.cuda.config import Cuda, device_of
from stepfuse.backends.host.config import AUTO, Cpu, OpenVino
from stepfuse.backends.host.network import open_network
from stepfuse.bundle.bundle import DENOISER, Bundle, checked_in_use
from stepfuse.bundle.identity import ModelIdentity
from stepfuse.bundle.outline import defaults_in_words, facts_of_model
from stepfuse.bundle.pipeline_info import TEXT_ENCODER, PipelineInfo, control_input
from stepfuse.display import NAME, printable
from stepfuse.engine import Engine, checked_wait, refuse_unused
from stepfuse.errors import BundleError
from stepfuse.lora.adapters import Adapters
from stepfuse.lora.networks import AdaptedNetworks
from stepfuse.lora.registry import LoraRegistry
from stepfuse.notebook import html_table
from stepfuse.pipeline.conditioning import Conditioning, Embeddings, PromptConditioning, as_texts
from stepfuse.pipeline.controls import Pictures as Controls
from stepfuse.pipeline.counts import PipelineStats
from stepfuse.pipeline.drawn import StopWatch, batches, facts, marked_if_custom, record
from stepfuse.pipeline.engines import Engines, Shape
from stepfuse.pipeline.input_images import from_pictures, shown, size_of
from stepfuse.pipeline.pictures import Array, Pictures, to_pixels
from stepfuse.pipeline.preparation import CALL_ARGUMENTS, Preparation, Prepared
from stepfuse.pipeline.preview import PicturePreview
from stepfuse.pipeline.prompts import PromptEncoder
from stepfuse.pipeline.provenance import digest_of
from stepfuse.pipeline.service import PictureService
from stepfuse.pipeline.size import pixels_of, rows_for, sample_shape
from stepfuse.pipeline.vae import Tile, Vae
from stepfuse.requests.prompt_request import PromptRequest
from stepfuse.requests.resolution import Compiler, seeds_of
from stepfuse.requests.terms import Terms
from stepfuse.samplers.table import StepTable
from stepfuse.serving.at_exit import GRACE, is_interrupt
from stepfuse.serving.batch import Callback, Observers
from stepfuse.serving.config import Serving
from stepfuse.serving.future import as_completed
from stepfuse.serving.reporting import Observer
from stepfuse.serving.stats import EngineStats
from stepfuse.serving.stream import Latest, PreviewStream


class TextToImage(LoraRegistry):
    """Samples pictures of prompts. Made by ``load``; a context manager, or to be closed.

    Calls from any number of threads are safe, and they share the denoiser's forwards with each other and with requests
    (``submit``, ``asample``, ``stream``, ``as_completed``) of their size. Leaving the context draws what was submitted;
    Ctrl-C and the cancellation of a task give it up. Torch, transformers and diffusers are not needed.

    Examples:
        >>> with sf.TextToImage.load("my-pipeline") as pipe:
        ...     pictures = pipe("a red cat", steps=4, guidance_scale=5.0, seed=0)
        >>> pictures.save("cat.png")
        [PosixPath('cat.png')]
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        backend: str | OpenVino = "onnxruntime",
        precision: str = "float32",
        threads: int = 0,
        spinning: bool | None = None,
        serving: Serving | None = None,
        tile: Tile = "auto",
        lora_bytes: int = 0,
        gpu: Cuda | None = None,
    ) -> None:
        if bundle.pipeline is None or not bundle.pipeline.prompts:
            raise ValueError(f"a bundle must be a pipeline's with prompts, {bundle.path} is not: load it with Engine")
        if len(bundle.info.shape) != 3:
            raise BundleError(f"{bundle.path}: a pipeline's samples must have shape (C, h, w), got {bundle.info.shape}")
        self.bundle = bundle
        self._model, self._pipeline = bundle.info, bundle.pipeline
        cpu = Cpu(backend, precision, threads, spinning)
        adapted = AdaptedNetworks.of(bundle, [DENOISER, TEXT_ENCODER], lora_bytes, cpu.backend)
        self._prompts = PromptEncoder(bundle, threads=threads, adapted=adapted, gpu=gpu)
        self._vae = Vae(bundle, threads=threads, tile=tile, gpu=gpu)
        conditioning = PromptConditioning(self._model, self._pipeline, self._prompts)
        self._registered = None if adapted is None else adapted.adapters
        compiler = Compiler(bundle.info)
        self._preparation = Preparation(
            self._model, self._pipeline, conditioning, self._vae, compiler, self._registered
        )
        serving_of = partial(_serving_of, self._pipeline, serving or Serving())
        asked = serving_of(bundle.info.shape)
        if cpu.backend == AUTO:
            from stepfuse.backends.host.auto import choose  # what it measures with is needed here alone

            cpu = choose(cpu, bundle, bundle.info, asked.row_limit, deterministic=asked.deterministic)
        network: Any
        if gpu is None:
            network = open_network(bundle, cpu, adapted)
        else:
            from stepfuse.backends.cuda.bundle_network import OpenedNetwork

            network = OpenedNetwork(bundle, gpu)
        on: dict[str, Any] = {"device": "cpu" if gpu is None else gpu, "session": network}

        def weights(key: Shape) -> object:
            return network.weights(bundle.info.resized(key[:3], _tokens(key)), serving_of(key).row_limit)

        self._engines = Engines(
            lambda key: Engine.load(bundle, shape=key[:3], tokens=_tokens(key), serving=serving_of(key), **on),
            weights=None if gpu is None else weights,
        )
        with self._engines.use(bundle.info.shape):  # raises if the network does not fit its manifest
            pass
        self.serving = asked
        self._identity = ModelIdentity.of(bundle, network.computed_by if gpu is None else "")
        self._serving_of = serving_of
        self._service = PictureService(
            self._engines, self._preparation, self._prompts, self._vae, serving_of, self.serving.max_queue
        )
        self._let_go = weakref.finalize(self, self._service.refuse)
        self._let_go.atexit = False  # the service is closed then

    @classmethod
    @hinted
    def load(
        cls,
        path: str | os.PathLike[str] | Bundle,
        *,
        device: str | Cuda = "cpu",
        max_rows: int | None = None,
        backend: str | OpenVino = "onnxruntime",
        precision: str = "float32",
        threads: int = 0,
        spinning: bool | None = None,
        serving: Serving | None = None,
        verify: bool = True,
        tile: Tile = "auto",
        lora_bytes: int = 0,
    ) -> TextToImage:
        """Loads a bundle that ``stepfuse export`` has made of a diffusers pipeline.

        Args:
            path: The bundle's folder, or a bundle that is loaded already.
            device: ``cpu``, ``cuda``, ``cuda:1``, or a ``Cuda`` that says how the denoiser runs there. Text encoders
                and VAE then run in ONNX Runtime's CUDA provider on the same GPU. Sizes share the denoiser's weights
                there, and the last four are kept; where TensorRT has others for each, one that is not in use is let go
                before another is loaded. The arguments from ``backend`` to ``spinning``, and ``lora_bytes``, are of the
                CPU alone.
            max_rows: Most rows of one forward of the denoiser; a guided picture takes two. By default as many as hold
                1024 x 1024 pixels, from 2 to 64. Rows beyond that wait for later forwards.
            backend: What runs the denoiser, as in ``Engine.load``; text encoder and VAE run in ONNX Runtime.
            precision: What the denoiser is computed in, likewise.
            threads: Threads inside an operator, likewise.
            spinning: How the denoiser's threads wait for each other, likewise.
            serving: How calls share the denoiser, as in ``Engine.load``; ``max_rows`` changes what it says.
            verify: Whether checksums are compared; False trusts the files' sizes.
            tile: Side in pixels of the tiles that a large picture is decoded in: ``auto``, a number, or None for never;
                ``stepfuse.pipeline.vae.Vae`` says more.
            lora_bytes: Memory for LoRAs, as in ``Engine.load``; they may change the text encoders too.

        Raises:
            LoraError: As in ``Engine.load``.
            BundleError: If the bundle cannot be used.
            ImportError: If ``tokenizers`` is not installed, or OpenVINO or TensorRT where it is asked for.
            ValueError: If ``device`` is none, the bundle takes no prompts, ``max_rows`` is below 1, ``Vae`` refuses
                ``tile``, or ``Engine.load`` would refuse an argument.
            ProviderError: On a GPU, if ONNX Runtime has no CUDA provider.
            CudaError: As in ``Engine.load``, as are KernelError, CaptureError and DenoiserError.

        Examples:
            >>> pipe = sf.TextToImage.load("my-pipeline", threads=1)
            >>> pipe.close()
        """
        gpu = device_of(device)
        if gpu is not None:
            of_cpu = {
                "backend": backend != Cpu.backend,
                "precision": precision != Cpu.precision,
                "threads": threads != 0,
                "spinning": spinning is not None,
                "lora_bytes": lora_bytes != 0,
            }
            refuse_unused(of_cpu, f"a pipeline on {device!r}")
        if max_rows is not None:
            serving = replace(serving or Serving(), max_rows=max_rows)
        how: dict[str, Any] = {"backend": backend, "precision": precision, "threads": threads, "spinning": spinning}
        with checked_in_use(path, verify=verify) as bundle:
            return cls(bundle, **how, serving=serving, tile=tile, lora_bytes=lora_bytes, gpu=gpu)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        width: int | None = None,
        height: int | None = None,
        num_images: int = 1,
        table: StepTable | None = None,
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
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        sample_posterior: bool = False,
        control: Controls | None = None,
        control_scale: float | Mapping[str, float] | None = None,
        control_range: tuple[float, float] | Mapping[str, tuple[float, float]] | None = None,
        lora: Mapping[str, float] | None = None,
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
            table: A compiled sampler, instead of ``sampler``, ``steps``, ``guidance_scale``, ``eta`` and ``options``.
            sampler: A name of ``stepfuse.samplers.SAMPLERS``; None is the model's default, as are the next three.
            steps: Number of steps.
            guidance_scale: 1 is no guidance, and half the passes; 0 samples the negative prompt (diffusers takes
                anything up to 1 as no guidance). A model whose ``guidance`` is embedded takes it as an input, whatever
                it is, in one pass; one that was distilled to take none refuses any but 1, and both a negative prompt.
            eta: Share of added noise of samplers that have one, 0 to 1; None is the model's default, or the sampler's.
            seed: 0 to 2^64 - 1. With one seed s for all, picture i has seed s + i; None is a random one.
            latents: Starting noise, shape (n, C, h, w), standard normal; None generates it from the seed. With
                ``denoising_start`` what the run goes on from: ``latents`` of what one with ``denoising_end`` returned.
            prompt_embeds: Instead of ``prompt``, what ``encode_prompt`` returns; it may also hold conditioning inputs
                that no prompt feeds. Where ``CondInput.free`` is ``length`` it may have any number of tokens, such as
                those of several contexts side by side; a prompt on the other side is then followed by empty contexts.
            negative_prompt_embeds: Instead of ``negative_prompt``.
            image: What the pictures begin as, noised, or with ``mask`` the known region: a Pillow image, which is
                scaled to ``width`` and ``height`` if these are given, or floating point (H, W, 3), 0 to 1; or as many
                as there are prompts or pictures. A Pillow image is taken as a viewer shows it
                (``stepfuse.pipeline.shown_picture.as_shown``): upright, transparency on white.
            mask: White, or 1, where ``image`` is repainted, black, or 0, in the known region; values between blend the
                two. As ``image``, without channels; a transparent one is refused.
            strength: Share of the steps that are taken from ``image`` on, above 0 to 1; None is 0.8, and 1 with a mask.
                Steps that are not whole are rounded as in diffusers: down, and up in pipelines of flow models.
            denoising_start: Where the run goes on from ``latents``, to which no noise is added: a share of the way from
                noise, above 0 and below 1; None begins as noise. As in diffusers it is measured in training timesteps
                and not in steps, and needs the sampler and the steps that the latents have come by. A sampler that adds
                noise needs another ``seed`` than theirs: it begins its noise anew.
            denoising_end: Where the run ends with noise left, which a run of another model goes on from, likewise;
                above ``denoising_start``. What is decoded then shows that noise.
            sample_posterior: Whether ``image`` is encoded as a sample of the VAE's posterior by the picture's seed, as
                diffusers does, instead of as its mean.
            control: What ControlNets of the bundle follow, by their names: pictures as of ``image``, which also say the
                size where nothing else does. One that is left out does not act.
            control_scale: How much they act: a number for all, or by name; None is 1.
            control_range: At which steps, as shares of those that are taken: (begin, end) for all, or by name; None is
                (0, 1).
            lora: Scales of LoRAs that ``add_lora`` has registered, by name, as in ``Engine.sample``. Both prompts are
                encoded with them, where they change a text encoder.
            progress: Whether a bar is shown.
            callback: As in ``Engine.sample``: ``callback(step, total, latents)`` with the clean samples implied so far,
                which ``decode`` makes pictures of; False stops the run there.
            **options: The sampler's own: ``spacing``, ``karras``, ``guidance_rescale``, ...

        Raises:
            ValueError: If neither or both of ``prompt`` and ``prompt_embeds`` are given; if the sampler refuses
                ``steps``, ``guidance_scale``, ``eta`` or an option, or one of these comes with ``table``; if the
                pipeline cannot sample the size; if an inpainting model lacks ``image`` or ``mask``, or the bundle a
                ControlNet of ``control``; if ``num_images`` is below 1, the pictures do not fit the machine's
                memory, a prompt has more than 16,384 characters, a seed outside 0 to 2^64 - 1, ``strength`` outside 0
                to 1 or given without an image, or a value of ``image`` or ``mask`` outside 0 to 1; if
                ``denoising_start`` or ``denoising_end`` is not within 0 to 1, the former not below the latter, leaves
                no step, or is given with ``image``, ``mask`` or ``strength``, for an inpainting model or for one of
                EDM, or the former without ``latents``; if ``lora`` names one that is not registered, or a scale that is
                not finite; if an array has another shape, or a list another length. The message says the rule and the
                value.
            TypeError: If an argument has the wrong type, or the sampler lacks an option.
            BundleError: If ``image`` is given and the bundle has no VAE encoder.
            DenoiserError: If a network fails or its output is not finite.
            EngineClosed: If the pipeline is closed.

        Warns:
            PromptCutWarning: If a prompt is longer than the text encoder's context: what is not read is shown.
        """
        self._service.require_open()
        prepared = self._preparation.prepare(
            prompt=prompt,
            negative_prompt=negative_prompt,
            width=width,
            height=height,
            num_images=num_images,
            table=table,
            sampler=sampler,
            steps=steps,
            guidance_scale=guidance_scale,
            eta=eta,
            seed=seed,
            latents=latents,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            image=image,
            mask=mask,
            strength=strength,
            denoising_start=denoising_start,
            denoising_end=denoising_end,
            sample_posterior=sample_posterior,
            control=control,
            control_scale=control_scale,
            control_range=control_range,
            lora=lora,
            options=options,
        )
        watch = None if callback is None else StopWatch(callback)
        with self._service.counted(prepared.n) as began, self._engines.use(prepared.network) as engine:
            encoded = self._preparation.encode(prepared)
            began()
            batch = engine._batch(prepared.n, **encoded, observers=Observers(progress, watch), on_device=True)
            samples = batch.run()
            pixels = to_pixels(self._vae.decode(samples, on_device=batch.on_device), (-1.0, 1.0))
        stopped_after = None if watch is None else watch.stopped_after
        return Pictures(pixels, samples, self._facts_of(prepared, strength, stopped_after), prepared.seeds)

    @hinted
    def submit(self, request: PromptRequest, *, wait: float = 0.0) -> Future[Pictures]:
        """Queues one picture to be drawn with whatever else is drawn then, through all stages.

        Args:
            request: What to draw.
            wait: Seconds to wait for room in the queue.

        Returns:
            Holds the picture, one in number, as a call would return it to the bit, or the exception that the call would
            raise. Cancelling works until it is there, whichever stage it is in. What is added with
            ``add_done_callback`` runs on a thread of the pipeline, which waits for it.

        Raises:
            ValueError: If a value of ``request`` is one that a call refuses, its deadline has passed, its timeout is
                not above 0, or ``wait`` is negative.
            TypeError: If an argument is of the wrong kind.
            BundleError: If ``image`` is given and the bundle has no VAE encoder.
            QueueFull: If ``serving.max_queue`` requests wait to begin.
            DeadlineError: If the deadline cannot be met, by the forwards so far.
            EngineClosed: If the pipeline is closed.
            RuntimeError: If a stage has no thread yet and the system none left; a later call tries again.

        Warns:
            PromptCutWarning: As in a call.

        Examples:
            >>> with sf.TextToImage.load("my-pipeline") as pipe:
            ...     future = pipe.submit(sf.PromptRequest(prompt="a red cat", steps=4, seed=0))
            ...     len(future.result(timeout=60))
            1
        """
        return self._service.submit(self._service.new_id(), *self._resolved(request), wait=checked_wait(wait))

    @hinted
    def stream(self, request: PromptRequest, *, wait: float = 0.0) -> PreviewStream[PicturePreview]:
        """Queues one picture and gives previews of it as it comes into being, the last one the picture itself.

        Args:
            request: What to draw.
            wait: Seconds to wait for room in the queue.

        Returns:
            To be walked with ``for`` or ``async for``. A slow reader misses previews and holds nothing up. Each is
            decoded if its ``decode`` is called.

        Raises:
            Exception: As ``submit`` does; walking it raises what the future of ``submit`` would hold.

        Examples:
            >>> with sf.TextToImage.load("my-pipeline") as pipe:
            ...     steps = [preview.step for preview in pipe.stream(sf.PromptRequest(prompt="a red cat", steps=4))]
            >>> steps[-1]
            4
        """
        number, latest = self._service.new_id(), Latest[PicturePreview]()
        stream = PreviewStream(self._service, number, latest, self._service.lease([number]))
        self._service.submit(number, *self._resolved(request), wait=checked_wait(wait), latest=latest)
        return stream

    async def asample(self, prompt: str | None = None, **arguments: Any) -> Pictures:
        """One picture, awaited: ``submit`` of a ``PromptRequest`` with these arguments, without waiting for room.

        Cancelling its task withdraws the request.

        Raises:
            Exception: As ``submit`` and a call do.

        Examples:
            >>> import asyncio
            >>> async def draw():
            ...     with sf.TextToImage.load("my-pipeline") as pipe:
            ...         return await pipe.asample("a red cat", steps=2, seed=0)
            >>> len(asyncio.run(draw()))
            1
        """
        import asyncio  # slow to import, and needed here alone

        return await asyncio.wrap_future(self.submit(PromptRequest(prompt, **arguments)))

    def as_completed(self, requests: Iterable[PromptRequest]) -> Iterator[tuple[PromptRequest, Future[Pictures]]]:
        """Draws any number of requests and yields each as it ends, with its settled future.

        They are taken from ``requests`` as room becomes free: an endless iterator is fine. The future of one that
        ``submit`` refuses holds the refusal. Leaving the loop early withdraws what has not ended.

        Examples:
            >>> requests = [sf.PromptRequest(prompt="a red cat", steps=2, seed=seed) for seed in range(3)]
            >>> with sf.TextToImage.load("my-pipeline") as pipe:
            ...     sorted(request.seed for request, future in pipe.as_completed(requests))
            [0, 1, 2]
        """
        self._service.require_other_thread()
        return as_completed(lambda request: self.submit(request, wait=math.inf), requests, self.serving.max_queue)

    def _resolved(self, request: PromptRequest) -> tuple[Prepared, dict[str, str], Terms]:
        """A request, checked: what is drawn, how, and on which terms."""
        prepared = self._preparation.prepare_request(request)
        [how] = self._facts_of(prepared, request.strength)
        return prepared, how, Terms.of(request)

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

        Examples:
            >>> with sf.TextToImage.load("my-pipeline") as pipe:
            ...     sorted(pipe.encode_prompt("a red cat"))
            ['encoder_hidden_states']
        """
        return self._prompts.encode(self._prompts.tokens(as_texts("prompt", prompt)))

    def unread(self, prompt: str) -> list[str]:
        """Messages of what the text encoders do not read of a prompt, being longer than their context; mostly none.

        Raises:
            Exception: As a call does for the prompt.

        Examples:
            >>> with sf.TextToImage.load("my-pipeline") as pipe:
            ...     pipe.unread("a red cat")
            []
        """
        return self._prompts.unread(prompt)

    def conditioning(
        self, prompt: str | Sequence[str], *, negative_prompt: str | Sequence[str] | None = None
    ) -> dict[str, Conditioning | None]:
        """What ``Engine.sample`` is to be given for prompts, where it runs the bundle's denoiser by itself.

        That may be on another device than the pipeline's, or ``stepfuse.fit``.

        Args:
            prompt: Of one sample, or a list, one a sample.
            negative_prompt: What guidance leads away from: one for all, or one a sample.

        Returns:
            ``cond`` and ``negative_cond``, rows of all conditioning inputs, one a sample, for the model's own size. The
            latter is None for a model that takes one pass a step (``ModelInfo.guidance``).

        Raises:
            Exception: As a call does.

        Warns:
            PromptCutWarning: If a prompt is longer than the text encoder's context.

        Examples:
            >>> with sf.TextToImage.load("my-pipeline") as pipe:
            ...     given = pipe.conditioning("a red cat", negative_prompt="blurred")
        """
        given: dict[str, Any] = dict.fromkeys(CALL_ARGUMENTS)
        both = 2.0 if self._model.guidance == "classifier_free" else None  # any scale that takes both passes
        given |= {"prompt": prompt, "negative_prompt": negative_prompt, "guidance_scale": both}
        given |= {"options": {}, "sample_posterior": False}
        encoded = self._preparation.encode(self._preparation.prepare(**given, num_images=1))
        return {name: encoded[name] for name in ("cond", "negative_cond")}

    def decode(self, latents: npt.ArrayLike) -> Array:
        """Pictures of the denoiser's samples.

        Args:
            latents: Shape (n, C, h, w).

        Returns:
            Shape (n, H, W, 3), float32, 0 to 1.

        Raises:
            ValueError: If ``latents`` has another shape.
            DenoiserError: If the decoder fails.

        Examples:
            >>> with sf.TextToImage.load("my-pipeline") as pipe:
            ...     latents = pipe("a red cat", steps=2, seed=0).latents
            ...     pipe.decode(latents).shape[0]
            1
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

        Examples:
            >>> with sf.TextToImage.load("my-pipeline") as pipe:
            ...     picture = pipe("a red cat", steps=2, seed=0)[0]
            ...     pipe.encode_image(picture).shape[0]
            1
        """
        image = shown("image", image, "RGB")
        size = size_of(image)
        if size is None:
            raise TypeError(f"image must be Pillow images or an array (n, H, W, 3), got {type(image).__name__}")
        shape = sample_shape(self._model, self._pipeline, *size)
        pictures = from_pictures(image, *pixels_of(self._pipeline, shape))
        seeds = seeds_of(seed, len(pictures))
        return self._preparation.latents_of(pictures, len(pictures), seeds, sample_posterior)

    def stats(self) -> dict[tuple[int, int], EngineStats]:
        """``Engine.stats`` of the denoiser by (width, height), for the sizes sampled last.

        Examples:
            >>> with sf.TextToImage.load("my-pipeline") as pipe:
            ...     pictures = pipe("a red cat", steps=2, guidance_scale=1.0, seed=0)
            ...     sum(one.steps for one in pipe.stats().values())  # an engine a size
            2
        """
        found: dict[tuple[int, int], EngineStats] = {}
        for shape, engine in self._engines.all().items():  # those of longer prompts apart
            size, counted = pixels_of(self._pipeline, shape), engine.stats()
            found[size] = found[size] + counted if size in found else counted
        return found

    def totals(self) -> PipelineStats:
        """Counts of all sizes together since the pipeline was made, its other stages' time among them.

        ``stepfuse.metrics`` reads these.

        Examples:
            >>> with sf.TextToImage.load("my-pipeline") as pipe:
            ...     pictures = pipe("a red cat", steps=2, guidance_scale=1.0, seed=0)
            ...     pipe.totals()["steps"]
            2
        """
        return self._service.stats()

    def observe(self, observer: Observer | None) -> None:
        """Has each iteration of the denoiser reported, of every size: ``Engine.observe``.

        Examples:
            >>> seen = []
            >>> with sf.TextToImage.load("my-pipeline") as pipe:
            ...     pipe.observe(seen.append)
            ...     pictures = pipe("a red cat", steps=2, seed=0)
            >>> len(seen) > 0
            True
        """
        self._engines.observe(observer)

    @hinted
    def close(self, *, abort: bool = False, timeout: float | None = None) -> None:
        """Draws what was submitted and waits for calls in progress, then frees the networks; closing twice is fine.

        Args:
            abort: Whether what was submitted, and calls in progress, are given up instead: they raise ``EngineClosed``.
            timeout: Seconds that this may take; None: as long as it takes. What is not drawn by then is given up, and a
                network that is still running has one second more, with ``abort`` none. If it does not return, its
                thread is abandoned.

        Raises:
            RuntimeError: If called from a callback.
            ValueError: If ``timeout`` is negative or not a number.

        Examples:
            >>> pipe = sf.TextToImage.load("my-pipeline")
            >>> pipe.close(timeout=30)
        """
        self._service.close(abort=abort, timeout=timeout)
        self._let_go.detach()

    def _adapters(self) -> Adapters | None:
        return self._registered

    def _require_open(self) -> None:
        self._service.require_open()

    def _facts_of(
        self, prepared: Prepared, strength: float | None, stopped_after: int | None = None
    ) -> list[dict[str, str]]:
        """How each picture of a call is made; ``strength`` is as it was given."""
        n, texts = prepared.n, prepared.conditional.texts
        width, height = pixels_of(self._pipeline, prepared.shape)
        cond = None
        if not texts:  # given as embeddings, which are there without the encoder
            cond = [{name: digest_of(rows) for name, rows in prepared.conditional.encode(None).items()}]
        made = [
            record(
                self._identity,
                prepared.table,
                prepared.seeds[i],
                schedule=self._model.schedule,
                max_rows=self._serving_of(prepared.shape).row_limit,
                run=prepared.run,
                strength=strength,
                denoising_start=prepared.denoising_start,
                denoising_end=prepared.denoising_end,
                image=_row_of(prepared.pixels, i, n),
                mask=_row_of(prepared.masks, i, n),
                noise=_row_of(prepared.noise, i, n),
                stopped_after=stopped_after,
                prompt=prepared.texts(i)[0] if texts else None,
                negative_prompt=prepared.texts(i)[1] or None,
                width=width,
                height=height,
                sample_posterior=prepared.sample_posterior and self._encodes(prepared),
                control=_control_of(prepared, i),
                lora=prepared.lora,
                batch=batch,
                cond=cond,
            )
            for i, batch in enumerate(batches(prepared.seeds, alike=prepared.conditional.count == 1))
        ]
        if prepared.own_table:
            made = marked_if_custom(made, prepared.table, self._model)
        return [facts(one) for one in made]

    def __enter__(self) -> TextToImage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupted = is_interrupt(error)
        self.close(abort=interrupted, timeout=GRACE if interrupted else None)

    def __repr__(self) -> str:
        width, height = pixels_of(self._pipeline, self._model.shape)
        return f"<TextToImage {printable(self.bundle.name, NAME)}, {width} x {height}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the pipeline, its prompts and its denoiser."""
        prompts = [(f"prompt as {one.input}", f"{one.length} tokens") for one in self._pipeline.prompts]
        facts = [("pipeline", self._pipeline.source), *prompts, *facts_of_model(self.bundle.info)]
        return html_table(repr(self), [*facts, ("defaults", defaults_in_words(self.bundle.info))])

    def _encodes(self, prepared: Prepared) -> bool:
        """Whether the VAE encodes a picture that was given."""
        return prepared.pixels is not None or bool(prepared.control and self._pipeline.encoded_controls)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a pipeline can be neither pickled nor copied: load it in each process")


def _row_of(rows: Array | None, index: int, n: int) -> Array | None:
    """What an array of one row, or one a prompt or a picture, holds for a picture."""
    return None if rows is None else rows[index * len(rows) // n]


def _control_of(prepared: Prepared, index: int) -> dict[str, Any] | None:
    """What is recorded of a picture's ControlNets."""
    found = {}
    for name, one in prepared.control.items():
        rows = prepared.controls[control_input(name)]
        picture = digest_of(rows[index * len(rows) // prepared.n])
        found[name] = {**picture, "scale": one.scale, "range": list(one.range)}
    return found or None


def _tokens(key: Shape) -> int | None:
    return key[3] if len(key) > 3 else None


def _serving_of(pipeline: PipelineInfo, shared: Serving, shape: Shape) -> Serving:
    """How the engine for samples of this shape is shared."""
    return replace(shared, max_rows=rows_for(pipeline, shape) if shared.max_rows is None else shared.max_rows)
