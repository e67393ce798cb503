"""Bodies of the routes that Stable Diffusion's web interfaces have, and what they are asked of the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from stepfuse.display import brief, listed
from stepfuse.pipeline.webui_text import (
    AUTOMATIC,
    UNIFORM,
    WEBUI_NAMES,
    has_brackets,
    plain_prompt,
    prompt_loras,
    sampler_of,
)
from stepfuse.requests.resolution import takes_eta
from stepfuse.server.errors import ApiError
from stepfuse.server.models import ServedModel
from stepfuse.server.schema import Asked, Control, Generation

#: Fields of theirs that clients send with the values that change nothing, and which those are.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        ("restore_faces", "tiling", "enable_hr", "include_init_images", "disable_extra_networks"), (False,)
    ),
    **dict.fromkeys(("inpaint_full_res",), (False, 0)),
    **dict.fromkeys(("save_images", "do_not_save_samples", "do_not_save_grid"), (True, False)),
    "override_settings_restore_afterwards": (True, False),
    **dict.fromkeys(("styles", "script_args"), ([],)),
    "script_name": ("", "None"),
    **dict.fromkeys(("subseed", "seed_resize_from_w", "seed_resize_from_h"), (-1, 0)),
    **dict.fromkeys(("subseed_strength", "s_churn", "s_tmin", "s_tmax", "s_min_uncond"), (0,)),
    **dict.fromkeys(("resize_mode", "mask_blur", "mask_blur_x", "mask_blur_y"), (0,)),
    **dict.fromkeys(("s_noise", "initial_noise_multiplier", "inpainting_fill", "clip_skip"), (1,)),
    "send_images": (True,),
}
#: The same of their settings.
_NEUTRAL_SETTINGS: Mapping[str, tuple[Any, ...]] = {
    "CLIP_stop_at_last_layers": (1,),
    "sd_vae": ("", "Automatic", "None"),
    "samples_format": ("png",),
}
#: Fields that clients always send. They are read beside others alone: enable_hr, a mask or, of the second set,
#: inpaint_full_res and InstructPix2Pix, which are not here.
_OF_HR = {"hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y", "hr_checkpoint_name"}
_OF_HR |= {"hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt", "hr_additional_modules", "hr_cfg"}
_OF_HR |= {"hr_distilled_cfg", "denoising_strength", "firstphase_width", "firstphase_height"}
_OF_OTHERS = {"inpaint_full_res_padding", "image_cfg_scale"}
_OF_MASK = {"mask_blur", "mask_blur_x", "mask_blur_y", "inpainting_fill", "inpaint_full_res", "inpainting_mask_invert"}
#: Of the ControlNet extension's preprocessors, none of which is here, and what its window shows.
_OF_PREPROCESSORS = {"processor_res", "threshold_a", "threshold_b", "pixel_perfect", "lowvram", "low_vram"}
_OF_PREPROCESSORS |= {"save_detected_map", "hr_option"}
_LEVELS = ("Karras", "Exponential", "Beta")
#: Their setting that names the model.
CHECKPOINT = "sd_model_checkpoint"
#: Their names for noise levels.
SCHEDULERS = (AUTOMATIC, UNIFORM, *_LEVELS)


class ControlUnit(BaseModel):
    """A picture that a ControlNet follows, as the ControlNet extension has it. Pictures are followed as they are."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    enabled: bool = True
    image: str | None = Field(
        default=None, validation_alias=AliasChoices("image", "input_image"), description="Base64."
    )
    model: str | None = Field(default=None, description="Name of a ControlNet; may be left out where there is one.")
    module: Literal["none", "None"] = Field(default="none", description="No preprocessor is here.")
    weight: float = 1.0
    guidance_start: float = Field(default=0.0, description="Share of the steps at which it begins.")
    guidance_end: float = Field(default=1.0, description="Share of the steps at which it ends.")
    control_mode: Literal[0, "Balanced"] = 0
    resize_mode: Literal[0, "Just Resize"] = Field(default=0, description="It is scaled to the size of the picture.")

    @model_validator(mode="before")
    @classmethod
    def _without_preprocessors(cls, given: Any) -> Any:
        """Leaves out what belongs to preprocessors, and what is null."""
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None and name not in _OF_PREPROCESSORS}


class ControlUnits(BaseModel):
    """The arguments of the ControlNet extension."""

    model_config = ConfigDict(extra="forbid")

    args: list[ControlUnit] = Field(default_factory=list, max_length=16)


class Scripts(BaseModel):
    """The extensions that are here."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    controlnet: ControlUnits = Field(
        default_factory=ControlUnits, validation_alias=AliasChoices("controlnet", "ControlNet")
    )


class Txt2Img(BaseModel):
    """Body of ``POST /sdapi/v1/txt2img``."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(default="", max_length=32_000)
    negative_prompt: str | None = Field(default=None, max_length=32_000)
    width: int | None = Field(default=None, ge=1, description="In pixels; the model's own where it is left out.")
    height: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1, description="The model's default where they are left out.")
    cfg_scale: float | None = Field(default=None, description="Guidance; the model's default where it is left out.")
    seed: int = Field(default=-1, ge=-1, lt=1 << 64, description="-1 is a random one.")
    sampler_name: str | None = Field(default=None, description="A name of theirs, or of ours.", examples=["DPM++ 2M"])
    sampler_index: str | None = Field(default=None, description="The same.")
    scheduler: str | None = Field(
        default=None,
        description="Noise levels: Uniform, which are the model's, Karras, Exponential or Beta. Automatic, as where it"
        " is left out, are those that a sampler of theirs has by itself, and the model's of ours.",
    )
    batch_size: int = Field(default=1, ge=1)
    n_iter: int = Field(default=1, ge=1, description="Times batch_size is the number of pictures.")
    eta: float | None = Field(default=None, description="1, which they have by default, goes with every sampler.")
    alwayson_scripts: Scripts = Field(default_factory=Scripts, description="Of extensions ControlNet's is here.")
    override_settings: dict[str, Any] = Field(
        default_factory=dict, description="sd_model_checkpoint names the model.", examples=[{}]
    )

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, given: Any) -> Any:
        """Leaves out what changes nothing, and refuses such a field with a value that would."""
        if not isinstance(given, dict):
            return given
        unread = _OF_HR - cls.model_fields.keys() | _OF_OTHERS
        if given.get("mask") is None:
            unread |= _OF_MASK
        given = {name: value for name, value in given.items() if name not in unread}
        for name in given.keys() & _NEUTRAL.keys():
            if given[name] is not None and given[name] not in _NEUTRAL[name]:
                allowed = " or ".join(map(repr, _NEUTRAL[name]))
                raise ValueError(f"{name} must be {allowed} or left out here, got {brief(given[name])}")
        return {name: value for name, value in given.items() if value is not None and name not in _NEUTRAL}

    def asked(self, model: ServedModel) -> Asked:
        """The same as the other routes have it.

        Raises:
            ApiError: If there is no such sampler or scheduler, or one side is given alone.
            ValueError: If a LoRA has no number as its scale, or words have a weight.
        """
        if (self.width is None) != (self.height is None):
            raise ApiError(400, "width and height must be given together", param="width")
        sampler, options = self._sampler(model)
        prompt, lora = prompt_loras(self.prompt)
        negative = self.negative_prompt
        return Generation(
            prompt=plain_prompt("prompt", prompt),
            model=model.name,
            n=self.batch_size * self.n_iter,
            size=None if self.width is None else f"{self.width}x{self.height}",
            negative_prompt=None if negative is None else plain_prompt("negative_prompt", negative),
            num_inference_steps=self.steps,
            guidance_scale=self.cfg_scale,
            seed=None if self.seed == -1 else self.seed,
            sampler=sampler,
            sampler_options=options,
            eta=None if self.eta == 1 and not takes_eta(model.info, sampler) else self.eta,
            lora=lora,
            control=self._controls(model),
        )

    @property
    def unread(self) -> list[str]:
        """What of the prompts means something to the web interfaces, and is text here."""
        texts = {"prompt": self.prompt, "negative_prompt": self.negative_prompt or ""}
        return [
            f"brackets in {name} are text here, and no emphasis: {brief(text)}"
            for name, text in texts.items()
            if has_brackets(text)
        ]

    @property
    def model(self) -> str | None:
        """The name of the model that is asked for.

        Raises:
            ApiError: If other settings are.
        """
        return model_in(self.override_settings, "override_settings")

    def _controls(self, model: ServedModel) -> dict[str, Control]:
        found: dict[str, Control] = {}
        for unit in self.alwayson_scripts.controlnet.args:
            if not unit.enabled:
                continue
            name = (unit.model or "").partition(" [")[0]  # behind it they have a digest
            if not name and len(model.controls) == 1:
                [name] = model.controls
            where = "alwayson_scripts.controlnet.args"
            if not name or name in found:
                rule = "must each name a model of its own" if model.controls else "must be left out for this model"
                known = f"of {listed(model.controls)}" if model.controls else "which has no ControlNets"
                raise ApiError(400, f"{where} {rule}, {known}, got {brief(unit.model)}", param=where)
            if unit.image is None:
                raise ApiError(400, f"{where} must each have an image, got none for {brief(name)}", param=where)
            found[name] = Control(image=unit.image, scale=unit.weight, range=(unit.guidance_start, unit.guidance_end))
        return found

    def _sampler(self, model: ServedModel) -> tuple[str | None, dict[str, Any]]:
        name = self.sampler_name or self.sampler_index
        scheduler = (self.scheduler or SCHEDULERS[0]).capitalize()
        if scheduler not in SCHEDULERS:
            rule = "scheduler must be Automatic, Uniform, Karras, Exponential or Beta"
            raise ApiError(400, f"{rule}, got {brief(self.scheduler)}", param="scheduler")
        levels = UNIFORM if scheduler == AUTOMATIC and model.info.schedule.is_flow else scheduler
        if name is None or name in model.samplers:
            _, options = sampler_of({"Sampler": "DDIM", "Schedule type": levels})
            return name, dict(options)
        found, options = sampler_of({"Sampler": name, "Schedule type": levels})
        if found is None:
            known = listed([*WEBUI_NAMES.values(), *model.samplers])
            raise ApiError(400, f"sampler_name must be one of {known}, got {brief(name)}", param="sampler_name")
        return found, dict(options)


def model_in(settings: Mapping[str, Any], name: str) -> str | None:
    """The name of the model that their settings hold; None if they hold none.

    Args:
        settings: By their names.
        name: Of the settings, for messages.

    Raises:
        ApiError: If they hold what would change something else.
    """
    others = {key for key, value in settings.items() if value not in _NEUTRAL_SETTINGS.get(key, ())} - {CHECKPOINT}
    if others:
        raise ApiError(400, f"{name} must hold {CHECKPOINT} alone, got {listed(sorted(others))}", param=name)
    named = settings.get(CHECKPOINT)
    return None if named is None else str(named)


class Img2Img(Txt2Img):
    """Body of ``POST /sdapi/v1/img2img``."""

    init_images: list[str] = Field(min_length=1, max_length=1, description="One picture in base64.")
    mask: str | None = Field(
        default=None,
        description="In base64; white where the picture is drawn anew or, if any of it is transparent, opaque there.",
    )
    inpainting_mask_invert: int = Field(default=0, ge=0, le=1, description="1: white is kept.")
    denoising_strength: float = Field(default=0.75, gt=0, le=1, description="Share of the steps left to the image.")
