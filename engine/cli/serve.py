"""The command ``stepfuse serve``: models behind an HTTP service."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import stepfuse as sf
from stepfuse.cli.command import FAILED
from stepfuse.cli.completion import model_names
from stepfuse.cli.console import complain
from stepfuse.cli.options import Machine
from stepfuse.files.atomic import write_atomically

if TYPE_CHECKING:
    from stepfuse.server.models import ServedModel

_KEY = "STEPFUSE_API_KEY"
_NETWORK, _SHARING, _BOUNDS = "Network", "Sharing", "Bounds"


def _network(**settings: Any) -> Any:
    return typer.Option(rich_help_panel=_NETWORK, **settings)


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Embedded models' names, bundle folders, or NAME=FOLDER; the first is the default.",
            autocompletion=model_names,
        ),
    ],
    *,
    host: Annotated[str, _network(metavar="ADDRESS", help="Where to listen; 0.0.0.0 is everywhere.")] = "127.0.0.1",
    port: Annotated[int, _network(metavar="N", help="0 lets the system choose.", min=0, max=65535)] = 8000,
    api_key_file: Annotated[
        Path | None,
        _network(metavar="FILE", help=f"Keys that clients must send one of, a line each; {_KEY} is one, too."),
    ] = None,
    cors_origin: Annotated[
        list[str] | None, _network(metavar="URL", help="A web page's origin that may ask; repeat it for several.")
    ] = None,
    grace: Annotated[
        float, _network(metavar="SECONDS", help="What SIGTERM leaves to requests in progress.", min=0.0)
    ] = 30.0,
    log_format: Annotated[Literal["text", "json"], _network(help="Of the log, on standard error.")] = "text",
    policy: Annotated[
        Literal["auto", "fifo", "shortest", "deadline"],
        typer.Option(help="Which request steps next.", rich_help_panel=_SHARING),
    ] = "auto",
    max_queue: Annotated[
        int,
        typer.Option(metavar="N", help="Most pictures that wait to begin.", min=1, rich_help_panel=_SHARING),
    ] = 1024,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure what forwards cost before the first.", rich_help_panel=_SHARING)
    ] = False,
    costs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Costs that --calibrate writes; read without it.", rich_help_panel=_SHARING),
    ] = None,
    max_images: Annotated[
        int, typer.Option(metavar="N", help="Most pictures of a request.", min=1, rich_help_panel=_BOUNDS)
    ] = 10,
    max_steps: Annotated[
        int, typer.Option(metavar="N", help="Most steps of a picture.", min=1, rich_help_panel=_BOUNDS)
    ] = 250,
    max_pixels: Annotated[
        int, typer.Option(metavar="N", help="Most pixels of a picture.", min=1, rich_help_panel=_BOUNDS)
    ] = 1 << 22,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[MODEL/]NAME=FILE",
            help="A LoRA that requests can choose, of the first model or of the one that is named; repeat it.",
            rich_help_panel=_SHARING,
        ),
    ] = None,
    lora_memory: Annotated[
        int, typer.Option(metavar="MIB", help="Most memory of each model's LoRAs.", min=1, rich_help_panel=_SHARING)
    ] = 1024,
    machine: Machine,
) -> None:
    """Serve models over HTTP, with OpenAI's images API and live previews. SIGTERM drains; a second one gives up."""
    from stepfuse.server import Limits, create_app
    from stepfuse.server.loading import costs_text, find_model, load_model, named, read_costs
    from stepfuse.server.logs import log_to_stderr
    from stepfuse.server.run import serve as run

    keys = _keys(api_key_file)
    if not keys and not _is_loopback(host):
        complain(f"any client that reaches {host} is served: --api-key-file asks for a key", colour="yellow")
    serving = sf.Serving(policy=policy, max_queue=max_queue)
    with ExitStack() as stack:
        served: list[ServedModel] = []
        names = [find_model(given, verify=False)[0] for given in models]
        loras = _loras_by_model(lora or (), names)
        for name, given in zip(names, models, strict=True):
            own = loras.get(name, {})
            memory = {"lora_bytes": lora_memory << 20} if own else {}
            served.append(load_model(given, serving=serving, loras=own, **memory, **machine.arguments))
            stack.callback(served[-1].close)
        if calibrate:
            measured = _calibrated(served)
            if costs is not None:
                text = costs_text(measured)
                write_atomically(costs, lambda file: file.write_text(text, encoding="utf-8"))
        else:
            measured = {} if costs is None else read_costs(costs)
        app = create_app(
            named((model.name, model) for model in served),
            limits=Limits(images=max_images, steps=max_steps, pixels=max_pixels),
            api_keys=keys,
            cors_origins=cors_origin or (),
            calibrate=measured,
        )
        log_to_stderr(log_format)

        def abort() -> None:
            for model in served:
                model.close(abort=True, timeout=1.0)

        def started(url: str) -> None:
            typer.echo(f"{url} serves {', '.join(model.name for model in served)}")

        answered = run(app, host=host, port=port, grace=grace, abort=abort, started=started)
    if not answered:
        raise typer.Exit(FAILED)


def _calibrated(served: list[ServedModel]) -> dict[str, sf.CostCurve]:
    engines = [model for model in served if model.classes is not None]
    if not engines:
        raise ValueError("--calibrate is for models that take classes: those with prompts are planned without a cost")
    for model in engines:
        model.warm_up(calibrate=True)
    return {model.name: model.cost for model in engines if model.cost is not None}


def _loras_by_model(texts: Sequence[str], models: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Files of LoRAs by model and name.

    Raises:
        ValueError: If one is not NAME=FILE or MODEL/NAME=FILE, or ``loras_by_model`` refuses it.
    """
    from stepfuse.server.loading import loras_by_model

    given = []
    for text in texts:
        place, separator, file = text.partition("=")
        if not (separator and place and file):
            raise ValueError(f"--lora must be NAME=FILE or MODEL/NAME=FILE, got {text!r}")
        given.append((place, file))
    return loras_by_model("--lora", given, models)


def _keys(file: Path | None) -> list[str]:
    """API keys of a file and of the environment; a file without any is refused."""
    keys = [key for key in [os.environ.get(_KEY)] if key is not None]
    if file is not None:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        keys += (found := [line for line in lines if line])
        if not found:
            raise ValueError(f"--api-key-file must hold a key a line, {file} holds none")
    return keys


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
