"""``stepfuse sample --like PICTURE``: what a picture says of how it was drawn, in the place of options left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import stepfuse as sf
from stepfuse.bundle.identity import ModelIdentity
from stepfuse.cli.common import parse_cond
from stepfuse.cli.completion import model_names
from stepfuse.cli.console import complain
from stepfuse.cli.options import PICTURE
from stepfuse.display import brief, shortened
from stepfuse.pipeline.provenance import Provenance
from stepfuse.pipeline.webui_text import plain_prompt, prompt_loras, sampler_of, unread_settings
from stepfuse.samplers.levels import without_overridden

Like = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A picture that stepfuse has saved, to be drawn again; options given beside it change it.",
        rich_help_panel=PICTURE,
    ),
]
OptionalModel = Annotated[
    str | None,
    typer.Argument(
        help="An embedded model's name, or a bundle folder.", show_default="fashion", autocompletion=model_names
    ),
]

#: Options that change what is drawn; with one of them given, the picture is another.
_CHANGING = (
    *("prompt", "negative_prompt", "width", "height", "number", "cond", "seed", "strength", "columns"),
    *("sampler", "steps", "guidance_scale", "eta", "options"),
)


@dataclass(frozen=True)
class Likeness:
    """A picture that is to be drawn again, or with changes.

    Attributes:
        path: The picture.
        arguments: What it says, by the names of options; ``cond`` and ``negative_cond`` are a value a sample,
            ``options`` the sampler's own.
        made: All that was recorded; None of a picture of another program.
        unread: Settings of such a one that are not here, in words.
    """

    path: Path
    arguments: Mapping[str, Any]
    made: Provenance | None
    unread: str = ""

    @classmethod
    def read(cls, path: Path) -> Likeness:
        """Reads a picture.

        Raises:
            ValueError: If it does not say how it was made, or was made of what no option gives.
            OSError: If it cannot be read.
        """
        from stepfuse.pipeline.saved_entries import read_entries

        entries = read_entries(path)
        if entries.provenance is not None:
            return cls(path, _arguments(path, entries.provenance), entries.provenance)
        if entries.webui:
            return cls(path, _arguments_of_webui(path, entries.webui), None, unread_settings(entries.webui))
        raise ValueError(f"{path} does not say how it was made: --like needs a picture that stepfuse has saved")

    @property
    def model(self) -> str:
        """The model that it names, where that comes with the package.

        Raises:
            ValueError: If it does not.
        """
        name = "" if self.made is None else self.made.model.name
        if name in sf.embedded_models():
            return name
        raise ValueError(
            f"{self.path} was drawn with {brief(name or 'another program')}: give the MODEL that draws it again"
        )

    def fill(self, given: Mapping[str, Any], bundle: sf.Bundle) -> dict[str, Any]:
        """The options, each as it is given or else as the picture says; warns of what differs in version and model.

        Args:
            given: Values by option, None where left out; ``options`` is empty then.
            bundle: The model that is to draw it.

        Returns:
            The same names, and ``negative_cond``, ``denoising_end``, ``sample_posterior``; ``keep``, which sample of
            those drawn is wanted (None: all); ``stopped_after`` and ``callback``, which stop the run where it was
            stopped.

        Raises:
            ValueError: If the picture began as an image that is not given, or is of another kind than the model.
        """
        prompts = bundle.pipeline is not None and bundle.pipeline.prompts
        if ("prompt" in self.arguments) != bool(prompts):
            ours, theirs = ("prompts", "classes") if prompts else ("classes", "prompts")
            raise ValueError(f"{self.path} was drawn by a model of {theirs}, {bundle.name} takes {ours}")
        exact = all(given.get(name) in (None, {}) for name in _CHANGING)
        said = dict(self.arguments)
        if given.get("sampler") not in (None, said.get("sampler")):
            said |= {"options": {}, "eta": None}  # they are of another sampler
        options = {**without_overridden(said["options"], given["options"]), **given["options"]}
        for levels in ("timesteps", "sigmas"):
            if given.get("steps") is not None and levels not in given["options"]:
                options.pop(levels, None)
            if levels in given["options"]:
                said["steps"] = None
        found = {name: said.get(name) if value is None else value for name, value in given.items()}
        if given["cond"]:
            found["cond"] = [parse_cond(bundle.info, text) for text in given["cond"]]
        if self.made is None:
            found |= self._prompts(given)
        found |= {"options": options, "negative_cond": said.get("negative_cond"), "keep": None, "callback": None}
        found["stopped_after"] = None
        found["denoising_end"] = None if self.made is None else self.made.denoising_end
        found["sample_posterior"] = self.made is not None and self.made.sample_posterior
        self._require_pictures(found)
        self._warn(bundle)
        if exact and self.made is not None:
            found |= self._again(self.made)
        return found

    def loras(self, given: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """What it says of LoRAs, by name; those of a web interface's prompt are those of the prompt that is drawn."""
        if self.made is not None:
            return self.made.loras or {}
        if given.get("prompt") is not None:
            return {}
        return {name: {"scale": scale} for name, scale in prompt_loras(self.arguments["prompt"])[1].items()}

    def _prompts(self, given: Mapping[str, Any]) -> dict[str, str]:
        """The prompts of a web interface's picture that are drawn, as they are meant.

        Raises:
            ValueError: If words have a weight.
        """
        texts = {name: self.arguments.get(name) for name in ("prompt", "negative_prompt") if given.get(name) is None}
        try:
            if "prompt" in texts:
                texts["prompt"], _ = prompt_loras(self.arguments["prompt"])
            return {name: plain_prompt(name, text) for name, text in texts.items() if text}
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}, or give --prompt and --negative-prompt") from error

    def _again(self, made: Provenance) -> dict[str, Any]:
        """What draws the very same picture: the samples that it was drawn with, and where the run was stopped."""
        number, index = made.batch or (made.number, None)
        stop = made.stopped_after
        return {
            "number": number,
            "seed": made.seed - (index or 0),
            "max_rows": made.max_rows,
            "keep": index,
            "stopped_after": stop,
            "callback": None if stop is None else _stop_after(stop),
        }

    def _require_pictures(self, found: Mapping[str, Any]) -> None:
        for name in ("image", "mask"):
            recorded = None if self.made is None else getattr(self.made, name)
            if recorded is not None and found[name] is None:
                raise ValueError(
                    f"{self.path} was drawn with an {name}, sha256 {recorded['sha256'][:12]}...: give it with --{name}"
                )

    def _warn(self, bundle: sf.Bundle) -> None:
        if self.made is None:
            also = f", and whose {self.unread} is not read" if self.unread else ""
            warn(f"{self.path} is of another program, whose noise is another{also}: the picture will be another, too")
            return
        if self.made.version != sf.__version__:
            warn(f"{self.path} was drawn by stepfuse {self.made.version}, this is {sf.__version__}")
        if differences := ModelIdentity.of(bundle).differences(self.made.model):
            warn(f"{self.path} was drawn with another model: {', '.join(differences[:4])}")

    def compare(self, made: Provenance) -> None:
        """Warns of what was drawn from another image, by another library or on other noise levels than the picture."""
        recorded = self.made
        if recorded is None:
            return
        for name in ("image", "mask"):
            if getattr(recorded, name) not in (None, getattr(made, name)):
                warn(f"--{name} is another than the one that {self.path} was drawn with")
        for name, one in (recorded.loras or {}).items():
            if one["sha256"] != (made.loras or {}).get(name, one)["sha256"]:
                warn(f"--lora {name} is another file than the one that {self.path} was drawn with")
        now, then = (one.model.computed_by or "onnxruntime float32" for one in (made, recorded))
        if now != then:
            text = f"{self.path} was drawn with its network in {then}, and now in {now}: see --backend and --precision"
            warn(text)
        same = recorded.sampler_arguments == Provenance.from_json(made.to_json()).sampler_arguments
        if same and recorded.table != made.table:
            warn(f"{self.path} was drawn with other coefficients of {made.sampler}: the model's schedule has changed")


def warn(text: str) -> None:
    """Prints a warning as one line on standard error."""
    complain(text, colour="yellow")


def conds_of(given: list[Any] | None, number: int) -> Any:
    """Recorded conditioning as ``Engine.sample`` takes it: repeated in order, a dict of lists for several inputs."""
    if not given:
        return None
    rows = [given[index % len(given)] for index in range(number)]
    names = next((list(one) for one in rows if isinstance(one, dict)), None)
    if names is None:
        return rows
    return {name: [one.get(name) if isinstance(one, dict) else None for one in rows] for name in names}


def _arguments(path: Path, made: Provenance) -> dict[str, Any]:
    values = [one for row in [*(made.cond or []), *(made.negative_cond or [])] for one in _values(row)]
    for holds, what in (
        (made.walk is not None, "by stepfuse interpolate"),
        (made.custom_table, "with a table of one's own"),
        (made.control is not None, "with ControlNets"),
        (made.denoising_start is not None, "on from latents"),
        (made.noise is not None, "from noise that was given as an array"),
        (any(isinstance(one, dict) for one in values), "with conditioning that was given as an array"),
    ):
        if holds:
            raise ValueError(f"{path} was drawn {what}, which --like does not have")
    options = made.sampler_arguments
    own = {name: options.pop(name, None) for name in ("sampler", "steps", "guidance_scale", "eta")}
    names = ("prompt", "negative_prompt", "width", "height", "number", "cond", "negative_cond", "seed", "columns")
    said = {name: getattr(made, name) for name in (*names, "strength") if getattr(made, name) is not None}
    return {**own, **said, "options": options}


def _values(row: Any) -> list[Any]:
    return list(row.values()) if isinstance(row, dict) and "sha256" not in row else [row]


def _arguments_of_webui(path: Path, settings: Mapping[str, str]) -> dict[str, Any]:
    sampler, options = sampler_of(settings)
    width, _, height = settings.get("Size", "").partition("x")
    numbers = {"steps": settings.get("Steps", ""), "seed": settings.get("Seed", ""), "width": width, "height": height}
    missing = [name for name, text in numbers.items() if not (text.isdecimal() and len(text) < 21)]
    missing += ["sampler"] if sampler is None else []
    try:
        scale = float(settings.get("CFG scale", ""))
    except ValueError:
        missing.append("guidance scale")
    if missing:
        raise ValueError(
            f"{path} must say how it was made for --like, it lacks {', '.join(missing)}: its settings are"
            f" {shortened(', '.join(f'{name}: {value}' for name, value in settings.items()))}"
        )
    prompts = {"prompt": settings["Prompt"], "negative_prompt": settings.get("Negative prompt")}
    counts = {name: int(text) for name, text in numbers.items()}
    return {**prompts, **counts, "sampler": sampler, "guidance_scale": scale, "options": options, "number": 1}


def _stop_after(forwards: int) -> Callable[..., bool]:
    def goes_on(step: int, *_: Any) -> bool:
        return step < forwards

    return goes_on
