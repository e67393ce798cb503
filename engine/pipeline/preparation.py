"""The arguments of a call: all checked before anything is encoded, and then encoded for the denoiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.arguments import number, whole_number
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.bundle.pipeline_info import PipelineInfo, control_input, encoded_control_input
from stepfuse.display import NAME, brief, printable
from stepfuse.lora.adapters import Adapters, AdapterSet, chosen
from stepfuse.pipeline.conditioning import (
    Embeddings,
    PromptConditioning,
    Rows,
    as_texts,
    require_rows,
    row_per_picture,
)
from stepfuse.pipeline.controls import (
    Control,
    Pictures,
    Range,
    conditioning_of,
    read_controls,
    size_of_controls,
)
from stepfuse.pipeline.engines import Shape
from stepfuse.pipeline.input_images import from_masks, from_pictures, shown, size_of
from stepfuse.pipeline.size import pixels_of, require_memory, sample_shape
from stepfuse.pipeline.stage import Interrupt
from stepfuse.pipeline.vae import Vae
from stepfuse.requests.editing import IMAGE_STRENGTH, Edit
from stepfuse.requests.guidance import in_its_passes, require_no_negative
from stepfuse.requests.partial_run import part_of_run, strength_of_flow
from stepfuse.requests.prompt_request import PromptRequest
from stepfuse.requests.request import Request
from stepfuse.requests.resolution import Compiler, require_table, seeds_of, starting_state
from stepfuse.samplers.noise import POSTERIOR, normal
from stepfuse.samplers.table import StepTable

Array = npt.NDArray[np.float32]

#: Arguments of a call that a request has too: what is drawn, and not how many or on which terms.
CALL_ARGUMENTS = [
    one.name for one in fields(PromptRequest) if one.name not in ("priority", "deadline", "timeout", "id")
]


@dataclass(frozen=True, eq=False)
class Prepared:
    """The n pictures of a call, checked and yet to be encoded.

    Attributes:
        table: The sampler, compiled.
        run: Those of its steps that are taken: what ``strength``, ``denoising_start`` and ``denoising_end`` leave.
        own_table: Whether it is the caller's.
        shape: (C, h, w) of each sample.
        seeds: One a picture.
        conditional: The prompts' rows.
        unconditional: Those of guidance's other pass; None where no step takes one.
        noise: Shape (n, C, h, w): starting noise, or what ``run`` goes on from; None generates it from the seeds.
        pixels: Shape (m, 3, H, W), -1 to 1: what the samples begin as; None: noise.
        masks: Shape (n, 1, h, w); None: nothing is kept.
        repainted: Shape (m, 1, H, W), 0 or 1: masks in pixels, for a denoiser that is conditioned on them, and which
            keeps what it likes; None for one that is not.
        control: What ControlNets follow, by name.
        controls: Their conditioning inputs; ``conditioning_of`` has the shapes.
        strength: Share of the steps, as the engine takes it.
        denoising_start: Where on the way from noise the run begins; None: at its first step.
        denoising_end: Where it ends; None: with its last step.
        sample_posterior: Whether ``pixels`` are encoded as samples of the posterior.
        lora: The LoRAs that were chosen.
    """

    table: StepTable
    run: StepTable
    own_table: bool
    shape: Shape
    seeds: Sequence[int]
    conditional: Rows
    unconditional: Rows | None
    noise: Array | None
    pixels: Array | None
    masks: Array | None
    repainted: Array | None
    control: Mapping[str, Control]
    controls: Mapping[str, Array]
    strength: float | None
    denoising_start: float | None
    denoising_end: float | None
    sample_posterior: bool
    lora: AdapterSet | None

    @property
    def n(self) -> int:
        """Number of pictures."""
        return len(self.seeds)

    @property
    def network(self) -> Shape:
        """What its engine is made for: the sample's shape, and the number of tokens if that is not the model's own."""
        tokens = self.conditional.tokens
        return self.shape if tokens is None else (*self.shape, tokens)

    def texts(self, index: int) -> tuple[str, str]:
        """The prompt and the negative prompt of a picture; empty if it has none, or embeddings instead."""
        both = [self.conditional.texts, self.unconditional.texts if self.unconditional else ()]
        prompt, negative = (texts[index * len(texts) // self.n] if texts else "" for texts in both)
        return prompt, negative


class Preparation:
    """Checks and encodes arguments of ``TextToImage``.

    Args:
        model: The denoiser.
        pipeline: The pipeline around it.
        conditioning: Of prompts.
        vae: Encodes pictures to begin with.
        compiler: Compiles the model's samplers.
        adapters: The denoiser's and the text encoder's LoRAs; None: they take none.
    """

    def __init__(
        self,
        model: ModelInfo,
        pipeline: PipelineInfo,
        conditioning: PromptConditioning,
        vae: Vae,
        compiler: Compiler,
        adapters: Adapters | None = None,
    ) -> None:
        self._model, self._pipeline = model, pipeline
        self._conditioning = conditioning
        self._vae = vae
        self._compiler = compiler
        self._adapters = adapters

    def prepare(
        self,
        *,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str] | None,
        width: int | None,
        height: int | None,
        num_images: int,
        table: StepTable | None,
        sampler: str | None,
        steps: int | None,
        guidance_scale: float | None,
        eta: float | None,
        seed: int | Sequence[int] | None,
        latents: npt.ArrayLike | None,
        prompt_embeds: Embeddings | None,
        negative_prompt_embeds: Embeddings | None,
        image: Any,
        mask: Any,
        strength: float | None,
        denoising_start: float | None,
        denoising_end: float | None,
        sample_posterior: bool,
        control: Pictures | None,
        control_scale: float | Mapping[str, float] | None,
        control_range: Range | Mapping[str, Range] | None,
        lora: Any,
        options: Mapping[str, Any],
    ) -> Prepared:
        """What ``TextToImage.__call__`` is given, checked; it says what each is, and what is raised.

        Nothing large is computed: it takes milliseconds.
        """
        ends = {"denoising_start": denoising_start, "denoising_end": denoising_end}
        self._require_from_latents(ends, latents, {"image": image, "mask": mask, "strength": strength})
        image = shown("image", image, "RGB")
        followed = read_controls(self._pipeline.controls, control, control_scale, control_range)
        shape = self._shape(width, height, image, size_of_controls(followed), latents)
        own_table = table is not None
        if table is None:
            table = self._compiler.compile(sampler, steps, guidance_scale, eta, self._shifted(shape, options))
        else:
            named = {"sampler": sampler, "steps": steps, "guidance_scale": guidance_scale, "eta": eta, **options}
            require_table(self._model, table, **named)
            table = in_its_passes(self._model, table)
        require_no_negative(self._model, "negative_prompt", negative_prompt)
        require_no_negative(self._model, "negative_prompt_embeds", negative_prompt_embeds)
        if prompt is not None:  # before each of many is looked at
            prompts = len(as_texts("prompt", prompt))
            require_memory(self._model, self._pipeline, shape, prompts * _checked_count(num_images))
        conditional = self._conditioning.conditional(prompt, prompt_embeds)
        n = conditional.count * _checked_count(num_images)
        require_memory(self._model, self._pipeline, shape, n, conditional.tokens)
        seeds = seeds_of(seed, n)
        width, height = pixels_of(self._pipeline, shape)
        noise = None if latents is None else starting_state((n, *shape), latents, "latents")
        unconditional = None
        if (table["g"] != 1).any():
            unconditional = self._conditioning.unconditional(negative_prompt, negative_prompt_embeds, conditional.count)
            conditional, unconditional = self._conditioning.of_one_length(conditional, unconditional)
        pixels = masks = repainted = None
        inpaints = self._pipeline.masked_input is not None
        if inpaints and (image is None or mask is None):
            raise ValueError(
                "image and mask must be given for this model, which repaints a part of a picture and keeps the rest,"
                f" got {'no image' if image is None else 'no mask'}: a mask of ones repaints all of it"
            )
        if image is not None:
            self._vae.require_encoder()
            pixels = from_pictures(image, width, height)
            require_rows("image", len(pixels), conditional.count, n)
        if mask is not None:
            cells = from_masks(mask, width, height, self._pipeline.pixels_per_latent)
            masks = row_per_picture("mask", cells, conditional.count, n)
        if inpaints:
            repainted = (from_masks(mask, width, height) >= 0.5).astype(np.float32)  # as diffusers rounds them
            require_rows("mask", len(repainted), conditional.count, n)
        share = self._strength(table, strength, image is not None, mask is not None)
        if inpaints and share is not None and share == 1:
            share = None  # begins as noise
        begins = image is not None and (not inpaints or share is not None)
        any_image = np.zeros(shape, dtype=np.float32) if begins else None
        kept = None if inpaints else masks
        late, _ = Edit(replace(self._model, shape=shape), n, any_image, kept, [share] * n).apply(0, table)
        run = part_of_run(late, self._model.schedule, **ends)
        if followed and self._pipeline.encoded_controls:
            self._vae.require_encoder()
        begun = run  # diffusers counts a ControlNet's steps before it ends early
        if followed and denoising_end is not None:
            begun = part_of_run(late, self._model.schedule, denoising_start=denoising_start)
        controls = conditioning_of(self._pipeline.controls, followed, begun, width, height)
        for name in followed:
            require_rows(f"control[{name!r}]", len(controls[control_input(name)]), conditional.count, n)
        return Prepared(
            table,
            run,
            own_table,
            shape,
            seeds,
            conditional,
            unconditional,
            noise,
            pixels,
            masks,
            repainted,
            followed,
            controls,
            share,
            denoising_start,
            denoising_end,
            bool(sample_posterior),
            chosen(self._adapters, lora),
        )

    def prepare_request(self, request: PromptRequest) -> Prepared:
        """The one picture of a request, checked.

        Raises:
            TypeError: If ``request`` is no PromptRequest, or a prompt is not one text.
            ValueError: If it holds embeddings of several prompts.
            Exception: As ``prepare`` does.
        """
        if not isinstance(request, PromptRequest):
            kind = "a Request, which Engine takes" if isinstance(request, Request) else printable(repr(request), NAME)
            raise TypeError(f"request must be a stepfuse.PromptRequest, got {kind}")
        for name in ("prompt", "negative_prompt"):
            if not isinstance(text := getattr(request, name), str | None):
                raise TypeError(f"{name} must be a text, got {text!r}: a request is for one picture")
        arguments = {name: getattr(request, name) for name in CALL_ARGUMENTS}
        if request.latents is not None and np.ndim(request.latents) == 3:
            arguments["latents"] = np.asarray(request.latents)[None]
        prepared = self.prepare(**arguments, num_images=1)
        if prepared.n != 1:
            raise ValueError(f"prompt_embeds must be of one prompt for a request, got {prepared.n}")
        return prepared

    def encode(self, prepared: Prepared, interrupt: Interrupt | None = None) -> dict[str, Any]:
        """Arguments of ``Engine.sample``, by the text encoder and the VAE's encoder.

        Raises:
            DenoiserError: If one of them fails, or ``interrupt`` gives it up.
            BundleError: If the VAE's encoder cannot be used.
            EngineClosed: If the pipeline is closed.
        """
        n, count = prepared.n, prepared.conditional.count
        sizes = self._sizes(prepared.shape)
        cond = {**sizes[0], **self._controls(prepared, interrupt), **prepared.conditional.encode(prepared.lora)}
        masked = self._pipeline.masked_input
        if masked is not None and prepared.repainted is not None:
            cond[masked] = self._masked_image(prepared, interrupt)
        negative = None
        if prepared.unconditional is not None:
            uncond = {**sizes[1], **prepared.unconditional.encode(prepared.lora)}
            negative = {name: row_per_picture(name, uncond.get(name, cond[name]), count, n) for name in cond}
        image = None
        if prepared.pixels is not None and (masked is None or prepared.strength is not None):
            image = self.latents_of(prepared.pixels, count, prepared.seeds, prepared.sample_posterior, interrupt)
        return {
            "cond": {name: row_per_picture(name, rows, count, n) for name, rows in cond.items()},
            "negative_cond": negative,
            "table": prepared.run if image is None else prepared.table,
            "seed": prepared.seeds,
            "noise": prepared.noise,
            "image": image,
            "mask": prepared.masks if masked is None else None,
            "strength": prepared.strength,
            "lora": prepared.lora,
        }

    def latents_of(
        self,
        pixels: Array,
        count: int,
        seeds: Sequence[int],
        sample_posterior: bool,
        interrupt: Interrupt | None = None,
    ) -> Array:
        """Latents of pictures, one a seed, shape (n, C, h, w); ``encode`` says what is raised."""
        encoded = self._vae.encode(pixels, interrupt)
        mean, std = (row_per_picture("image", rows, count, len(seeds)) for rows in encoded)
        if sample_posterior:
            mean += std * np.stack([normal(seed, mean.shape[1:], stream=POSTERIOR) for seed in seeds])
        return mean

    def _controls(self, prepared: Prepared, interrupt: Interrupt | None) -> Mapping[str, Array]:
        """What the denoiser is given for ControlNets: pictures, or their latents, shape (n, C, h, w)."""
        if not self._pipeline.encoded_controls:
            return prepared.controls
        found = dict(prepared.controls)
        count, seeds = prepared.conditional.count, prepared.seeds
        for name in prepared.control:
            pixels = 2 * found.pop(control_input(name)) - 1
            latents = self.latents_of(pixels, count, seeds, prepared.sample_posterior, interrupt)
            found[encoded_control_input(name)] = latents
        return found

    def _masked_image(self, prepared: Prepared, interrupt: Interrupt | None) -> Array:
        """Latents of the picture without what is repainted, grey there, and the mask, shape (n, C + 1 or cell^2, h, w).

        A mask of one channel, the first pixel of each cell, comes first, as inpainting models of Stable Diffusion take
        it; one with every pixel of a cell as a channel comes last, as Flux' fill model does.
        """
        assert prepared.pixels is not None
        assert prepared.repainted is not None
        assert self._pipeline.masked_input is not None
        n, count = prepared.n, prepared.conditional.count
        rows = max(len(prepared.pixels), len(prepared.repainted))
        pixels, repainted = (row_per_picture("mask", one, count, rows) for one in (prepared.pixels, prepared.repainted))
        latents = self.latents_of(pixels * (1 - repainted), count, prepared.seeds, prepared.sample_posterior, interrupt)
        cell = self._pipeline.pixels_per_latent
        masks = row_per_picture("mask", prepared.repainted, count, n)
        if self._model.cond[self._pipeline.masked_input].shape[0] == 1 + latents.shape[1]:
            return np.concatenate([masks[:, :, ::cell, ::cell], latents], axis=1)
        pixels_of_cells = masks.reshape(n, latents.shape[2], cell, latents.shape[3], cell).transpose(0, 2, 4, 1, 3)
        return np.concatenate([latents, pixels_of_cells.reshape(n, cell**2, *latents.shape[2:])], axis=1)

    def _sizes(self, shape: Shape) -> tuple[dict[str, Array], dict[str, Array]]:
        """What the denoiser is given of the picture's size, in the conditional and in the unconditional pass."""
        name, scores = self._pipeline.size_input, self._pipeline.aesthetic_scores
        if name is None:
            return {}, {}
        width, height = pixels_of(self._pipeline, shape)
        ends = [(height, width)] * 2 if scores is None else [(score,) for score in scores]
        first, second = ({name: np.array([[height, width, 0, 0, *end]], dtype=np.float32)} for end in ends)
        return first, {} if scores is None else second

    def _shape(
        self,
        width: int | None,
        height: int | None,
        image: Any,
        control: tuple[int, int] | None,
        latents: npt.ArrayLike | None,
    ) -> Shape:
        """Shape of the samples."""
        given = None
        if image is not None and (width is None or height is None):
            given = size_of(image)
        given = given or control
        if given is None and latents is not None and np.ndim(latents) == 4:
            given = pixels_of(self._pipeline, np.shape(latents)[1:])
        own = given or pixels_of(self._pipeline, self._model.shape)
        return sample_shape(
            self._model, self._pipeline, own[0] if width is None else width, own[1] if height is None else height
        )

    def _shifted(self, shape: Shape, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """The options with the shift that follows from the size, where none is given."""
        shift = self._pipeline.shift_for(*shape[1:])
        if shift is None or any(options.get(name) is not None for name in ("shift", "timesteps")):
            return options
        return {**options, "shift": shift}

    def _require_from_latents(
        self, ends: Mapping[str, float | None], latents: npt.ArrayLike | None, others: Mapping[str, Any]
    ) -> None:
        """Refuses ``denoising_start`` and ``denoising_end`` of a run that begins as anything but noise or latents."""
        name = next((name for name, share in ends.items() if share is not None), None)
        if name is None:
            return
        if self._pipeline.masked_input is not None:
            raise ValueError(
                f"{name} must be left out for this model, which repaints a part of a picture, got {ends[name]}"
            )
        for other, given in others.items():
            if given is not None:
                raise ValueError(
                    f"{other} must be left out with {name}: such a run begins as noise or goes on from latents, got"
                    f" {brief(given)}"
                )
        if ends["denoising_start"] is not None and latents is None:
            raise ValueError(
                "denoising_start needs latents to go on from, those of a run with denoising_end, got latents=None"
            )

    def _strength(self, table: StepTable, given: float | None, has_image: bool, has_mask: bool) -> float | None:
        """As the engine takes it: flow pipelines round in their own way."""
        if not self._model.schedule.is_flow or not has_image or (given is None and has_mask):
            return given
        return strength_of_flow(IMAGE_STRENGTH if given is None else number("strength", given), len(table))


def _checked_count(given: int) -> int:
    count = whole_number("num_images", given)
    if count < 1:
        raise ValueError(f"num_images must be at least 1, got {count}")
    return count
