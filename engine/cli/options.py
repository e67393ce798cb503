"""The options that commands share, in groups: a dataclass a group, whose fields become options of the command."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

import stepfuse as sf
from stepfuse.backends.cuda.config import device_of
from stepfuse.backends.host.config import Cpu
from stepfuse.cli.completion import class_names, model_names, sampler_names, words
from stepfuse.cli.sampler_options import merged, numbers
from stepfuse.requests.resolution import Compiler

#: Headings of ``--help``.
WHAT, HOW, PICTURE, OUTPUT, MACHINE = "What", "How", "From a picture", "Output", "Machine"

Model = Annotated[str, typer.Argument(help="An embedded model's name, or a bundle folder.", autocompletion=model_names)]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace what is there already.", rich_help_panel=OUTPUT)]
NewBundle = Annotated[
    str, typer.Option("--output", "-o", metavar="FOLDER", help="The bundle to write.", rich_help_panel=OUTPUT)
]
Threads = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Threads of the network; 0 is one a core that the process may use.",
        min=0,
        rich_help_panel=MACHINE,
    ),
]


def _how(*flags: str, **settings: Any) -> Any:
    return typer.Option(*flags, rich_help_panel=HOW, **settings)


SamplerName = Annotated[
    str | None,
    _how(metavar="NAME", help=f"One of {', '.join(sf.samplers.SAMPLERS)}.", autocompletion=sampler_names),
]
SamplerOption = Annotated[
    list[str] | None,
    _how(
        "--sampler-option",
        metavar="NAME=VALUE",
        help="Any option of the sampler, such as clip=1 or timesteps=900,600,300; repeat it.",
    ),
]


@dataclass(frozen=True)
class Sampling:
    """Which sampler draws, and how; what is left out is the model's default."""

    sampler: SamplerName = None
    steps: Annotated[int | None, _how(metavar="N", help="Steps of the sampler.")] = None
    guidance_scale: Annotated[
        float | None, _how("--guidance-scale", "-g", metavar="NUMBER", help="1 is no guidance.")
    ] = None
    eta: Annotated[
        float | None,
        _how(metavar="NUMBER", help="Share of added noise, 0 to 1, of ddim (0), tcd (0.3), SDE samplers (1)."),
    ] = None
    karras: Annotated[bool | None, _how("--karras/--no-karras", help="Noise levels of Karras et al.")] = None
    levels: Annotated[
        str | None,
        _how(
            metavar="NAME",
            help="Noise levels: schedule, karras, exponential, beta or lu.",
            autocompletion=words("schedule", "karras", "exponential", "beta", "lu"),
        ),
    ] = None
    spacing: Annotated[
        str | None,
        _how(
            metavar="NAME",
            help="Of timesteps: leading, trailing or linspace.",
            autocompletion=words("leading", "trailing", "linspace"),
        ),
    ] = None
    guidance_interval: Annotated[
        str | None, _how(metavar="FROM,TO", help="Noise levels that are guided, such as 0.2,0.8; 1 is all noise.")
    ] = None
    guidance_rescale: Annotated[
        float | None, _how(metavar="NUMBER", help="0 to 1: how far guidance keeps the prediction's own contrast.")
    ] = None
    sampler_option: SamplerOption = None
    table: Annotated[
        Path | None, _how(metavar="FILE", help="A table that stepfuse fit has written, in the place of all these.")
    ] = None

    def compile(self, info: sf.ModelInfo, **changed: Any) -> sf.StepTable:
        """The table for a model.

        Args:
            info: The model.
            **changed: Values in the place of those of ``own``.

        Raises:
            ValueError: If a sampler refuses an option, or ``--table`` comes with one.
            TypeError: If the sampler has no such option.
            OSError: If the table cannot be read.
        """
        if self.table is not None:
            return self._own_table(self.table)
        return Compiler(info).compile(options=self.options, **{**self.own, **changed})

    def _own_table(self, file: Path) -> sf.StepTable:
        given = [name for name, value in {**self.own, **self.options}.items() if value is not None]
        if given:
            raise ValueError(f"table says all about the sampler: leave out {', '.join(given)}")
        return sf.StepTable.load(file)

    @property
    def options(self) -> dict[str, Any]:
        """The sampler's own options, those of ``--sampler-option`` among them.

        Raises:
            ValueError: If one of ``--sampler-option`` is not NAME=VALUE or given twice, or ``--guidance-interval`` is
                not two numbers.
        """
        interval = self.guidance_interval
        named = {
            "karras": self.karras,
            "levels": self.levels,
            "spacing": self.spacing,
            "guidance_interval": None if interval is None else numbers("--guidance-interval", interval, 2),
            "guidance_rescale": self.guidance_rescale,
        }
        return merged({name: value for name, value in named.items() if value is not None}, self.sampler_option)

    @property
    def own(self) -> dict[str, Any]:
        """What every sampler is asked for."""
        return {name: getattr(self, name) for name in ("sampler", "steps", "guidance_scale", "eta")}

    @property
    def arguments(self) -> dict[str, Any]:
        """All of it, as arguments of ``TextToImage``; raises as ``compile`` does."""
        if self.table is not None:
            return {"table": self._own_table(self.table)}
        return {**self.own, **self.options}


Prompt = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="What the picture shows, for a text-to-image bundle; repeat it for several.",
        rich_help_panel=WHAT,
    ),
]
PromptFile = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="A file of prompts, one a line; - is standard input.", rich_help_panel=WHAT),
]
NegativePrompt = Annotated[
    str | None, typer.Option(metavar="TEXT", help="What guidance leads away from.", rich_help_panel=WHAT)
]
Cond = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="Class name or index; repeat it for several. All classes if left out.",
        rich_help_panel=WHAT,
        autocompletion=class_names,
    ),
]


@dataclass(frozen=True)
class Machine:
    """What computes."""

    device: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="cpu, cuda, or cuda:N for one of several GPUs.",
            rich_help_panel=MACHINE,
            autocompletion=words("cpu", "cuda"),
        ),
    ] = "cpu"
    backend: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="onnxruntime; on the CPU also openvino (an extra), or auto, the fastest; on a GPU also"
            " onnxruntime-tensorrt or tensorrt.",
            rich_help_panel=MACHINE,
            autocompletion=words("onnxruntime", "openvino", "auto", "onnxruntime-tensorrt", "tensorrt"),
        ),
    ] = "onnxruntime"
    precision: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Of the network: float32, or with openvino bf16 or f16.",
            rich_help_panel=MACHINE,
            autocompletion=words("float32", "bf16", "f16"),
        ),
    ] = "float32"
    threads: Threads = 0
    spinning: Annotated[
        bool | None,
        typer.Option(
            "--spinning/--no-spinning",
            help="Whether threads wait actively for each other; a moment if left out.",
            rich_help_panel=MACHINE,
        ),
    ] = None
    max_rows: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Most rows of one forward; 64, on a GPU 16, or by size with --prompt.",
            min=1,
            rich_help_panel=MACHINE,
        ),
    ] = None

    @property
    def arguments(self) -> dict[str, Any]:
        """As arguments of ``Engine.load`` and ``TextToImage.load``.

        Raises:
            ValueError: If there is no such device, or it is a GPU that runs no such back end.
        """
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        gpu = device_of(self.device)
        if gpu is not None and self.backend != Cpu.backend:
            found |= {"device": replace(gpu, backend=self.backend), "backend": Cpu.backend}
        return found


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Has a command take the fields of its dataclass parameters as options of its own, in their place.

    Fields whose annotation has no ``typer.Option`` stay at their default.
    """
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    members: dict[str, list[str]] = {}
    # Not get_type_hints: up to Python 3.10 it puts Optional around the annotation of a parameter whose default is None.
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        group = parameter.annotation
        if not is_dataclass(group):
            parameters.append(parameter)
            continue
        groups[name] = group
        options = {key: hint for key, hint in get_type_hints(group, include_extras=True).items() if _is_option(hint)}
        members[name] = list(options)
        defaults = {field.name: field.default for field in fields(group)}
        parameters += [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=defaults[key], annotation=hint)
            for key, hint in options.items()
        ]

    @wraps(command)
    def run(**given: Any) -> None:
        for name, keys in members.items():
            given[name] = groups[name](**{key: given.pop(key) for key in keys})
        command(**given)

    ordered = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
    run.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    del run.__wrapped__  # typer would look for the signature there
    return run


def _is_option(hint: Any) -> bool:
    return get_origin(hint) is Annotated and any(hasattr(one, "param_decls") for one in get_args(hint)[1:])
