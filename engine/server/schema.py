"""Bodies of requests, as OpenAI's images API has them with what peers and this engine add."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator, model_validator

from stepfuse.server.fields import size_of

Format = Literal["png", "jpeg", "webp"]


class Control(BaseModel):
    """What a ControlNet follows."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(
        description="A PNG, JPEG or WebP file in base64, or a data: url; scaled to the size of the picture."
    )
    scale: float = Field(default=1.0, description="Of what it adds to the denoiser.", examples=[0.8])
    range: tuple[float, float] = Field(
        default=(0.0, 1.0), description="Share of the steps that it acts at: begin and end, 0 to 1."
    )


class Asked(BaseModel):
    """What all requests for pictures have in common."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    prompt: str = Field(
        max_length=32_000,
        description="What the picture shows; for a model that takes classes, the name or number of one, or nothing.",
        examples=["sneaker"],
    )
    model: str | None = Field(default=None, description="A name of /v1/models; the first one where it is left out.")
    n: int = Field(default=1, ge=1, description="Number of pictures, which begin from seeds that follow each other.")
    size: str | None = Field(default=None, description="WIDTHxHEIGHT in pixels; the model's own unless given.")
    response_format: Literal["b64_json", "url"] = Field(
        default="b64_json", description="Whether a picture comes in the answer, or under a url that expires."
    )
    output_format: Format = Field(default="png", description="Every format holds how the picture was drawn.")
    output_compression: int | None = Field(
        default=None,
        ge=0,
        le=100,
        description="Quality of a jpeg, 95 unless given, or webp, without loss unless given.",
    )
    background: Literal["auto", "opaque"] | None = Field(default=None, description="Pictures are opaque.")
    quality: Literal["auto", "standard"] | None = Field(default=None, description="The steps say the quality.")
    style: Literal["vivid"] | None = Field(default=None, description="OpenAI's default; said in the prompt.")
    moderation: Literal["auto", "low"] | None = Field(default=None, description="Nothing is moderated.")
    user: str | None = Field(default=None, max_length=256, description="Recorded in the access log.")
    safety_identifier: str | None = Field(default=None, max_length=256, description="In the place of user.")
    stream: bool = Field(default=False, description="Whether the answer is a stream of events.")
    partial_images: int | None = Field(
        default=None, ge=0, description="Previews of a stream, at even steps: 0 unless given, at most one a step."
    )
    negative_prompt: str | None = Field(default=None, max_length=32_000, description="What guidance leads away from.")
    num_inference_steps: int | None = Field(
        default=None,
        ge=1,
        validation_alias=AliasChoices("num_inference_steps", "steps"),
        description="Steps of the sampler; the model's default where they are left out.",
        examples=[20],
    )
    guidance_scale: float | None = Field(default=None, description="1 is none; the model's default.", examples=[3.0])
    seed: int | None = Field(default=None, ge=0, lt=1 << 64, description="Of the first picture; random below 2^53.")
    sampler: str | None = Field(default=None, description="A name of the model's samplers.", examples=["dpmpp_2m"])
    sampler_options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the sampler by name.", examples=[{"karras": True}]
    )
    eta: float | None = Field(default=None, description="Share of added noise, 0 to 1, of samplers that have one.")
    lora: dict[str, float] = Field(
        default_factory=dict, description="Scales of the model's LoRAs by name.", examples=[{"style": 0.8}]
    )
    control: dict[str, Control] = Field(
        default_factory=dict,
        description="What the model's ControlNets follow, by name; those that are left out do not act.",
        examples=[{"canny": {"image": "iVBORw0KGgo...", "scale": 0.8, "range": [0, 0.7]}}],
    )
    priority: int = Field(default=0, description="Requests of a higher one step first.")
    deadline_ms: int | None = Field(
        default=None,
        ge=1,
        description="Milliseconds in which it is wanted; refused with 429 if that cannot be.",
    )
    timeout_ms: int | None = Field(default=None, ge=1, description="Milliseconds after which the request is given up.")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        """A field that is null is one that is left out, as OpenAI has it."""
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given

    @field_validator("size")
    @classmethod
    def _is_size(cls, value: str | None) -> str | None:
        size_of(value)
        return value

    @model_validator(mode="after")
    def _has_effect(self) -> Asked:
        """Refuses what would change nothing."""
        if self.output_compression is not None and self.output_format == "png":
            raise ValueError("output_compression must be left out for png, which loses nothing: take jpeg or webp")
        if self.partial_images is not None and not self.stream:
            raise ValueError("partial_images must be left out without stream, which they are sent in")
        if self.stream and self.response_format == "url":
            raise ValueError("response_format must be b64_json with stream, got 'url'")
        return self

    @property
    def pixels(self) -> tuple[int | None, int | None]:
        """Width and height."""
        return size_of(self.size)


class Generation(Asked):
    """Body of ``POST /v1/images/generations``."""


class Edit(Asked):
    """Body of ``POST /v1/images/edits``, a form: each field as a text; objects as JSON, or a field an entry.

    An entry of ``sampler_options``, ``lora`` and ``control`` is called ``lora[style]`` or ``control[canny][scale]``,
    and ``control[canny][image]`` may be a file.
    """

    image: bytes = Field(description="A PNG, JPEG or WebP file that the picture begins as.")
    mask: bytes | None = Field(
        default=None,
        description="What is drawn anew: where it is transparent or, if no pixel is, white.",
    )
    strength: float | None = Field(
        default=None, gt=0, le=1, description="How much of the run is left to the image; 0.8, and 1 with a mask."
    )
    input_fidelity: Literal["low"] | None = Field(default=None, description="OpenAI's default; strength says it.")


class Drawn(BaseModel):
    """How a picture was drawn: what draws it again."""

    id: str = Field(description="The request's id, with the number of the picture where there are several.")
    model: str
    digest: str = Field(description="SHA-256 of the model's weights.")
    size: str = Field(description="WIDTHxHEIGHT in pixels.")
    sampler: str
    steps: int
    guidance_scale: float
    seed: int
    lora: dict[str, float] | None = Field(default=None, description="Scales of LoRAs by name, if there are any.")


class Picture(BaseModel):
    """A picture of an answer."""

    b64_json: str | None = Field(default=None, description="The file, in base64.")
    url: str | None = Field(default=None, description="Where the file is, for a while.")
    drawn: Drawn


class Pictures(BaseModel):
    """An answer with pictures."""

    created: int = Field(description="Seconds since 1970.")
    data: list[Picture]
    background: Literal["opaque"] = "opaque"
    output_format: Format
    size: str = Field(description="WIDTHxHEIGHT in pixels.")
    safety_identifier: str | None = None
    warnings: list[str] | None = Field(
        default=None,
        description="What was taken and has no effect, if anything: the end of a prompt that is too long.",
        examples=[["a prompt is cut after 77 tokens: 'with a red hat' is not read"]],
    )


class Problem(BaseModel):
    """What went wrong."""

    message: str = Field(examples=["n must be at most 10, got 11"])
    type: str
    param: str | None
    code: str | None


class Failure(BaseModel):
    """An answer that is an error."""

    error: Problem


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="When the service was started, in seconds since 1970.")
    owned_by: str = "stepfuse"
    digest: str = Field(description="SHA-256 of its weights.")
    classes: list[str] | None = Field(description="Class names that it takes as prompts; null: any prompt.")
    size: str = Field(description="WIDTHxHEIGHT in pixels, unless asked otherwise.")
    samplers: list[str]
    loras: list[str] = Field(description="Names of LoRAs that requests can choose.")
    controls: list[str] = Field(description="Names of ControlNets that requests can have follow a picture.")
    defaults: dict[str, Any] = Field(description="Sampler, steps, guidance scale and options where none are given.")


class Models(BaseModel):
    """All models that are served."""

    object: Literal["list"] = "list"
    data: list[Model]
