"""Models as the command line names them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from stepfuse.bundle.bundle import Bundle, open_to_use
from stepfuse.display import brief, listed
from stepfuse.engine import Engine
from stepfuse.files.strict_json import parse_json
from stepfuse.lora.adapters import UNBOUNDED
from stepfuse.pipeline.text_to_image import TextToImage
from stepfuse.server.class_model import ClassModel, check_served
from stepfuse.server.models import ServedModel
from stepfuse.server.prompt_model import PromptModel
from stepfuse.serving.config import CostCurve

T = TypeVar("T")


def find_model(given: str, *, verify: bool = True) -> tuple[str, Bundle]:
    """The name that a model is served under, and its bundle, which is read and not loaded.

    Args:
        given: An embedded model's name or a folder, which is served under the bundle's name, or ``NAME=FOLDER``.
        verify: Whether checksums are compared.

    Raises:
        BundleError: If it cannot be used.
        ValueError: If it cannot be served.
    """
    name, separator, path = given.partition("=")
    if not separator:
        name, path = "", given
    bundle = open_to_use(path, verify=verify)
    if not takes_prompts(bundle):
        check_served(bundle.info, bundle)
    return name or bundle.name, bundle


def takes_prompts(bundle: Bundle) -> bool:
    """Whether a bundle is served as a pipeline with prompts, not as an engine with classes."""
    return bundle.pipeline is not None and bool(bundle.pipeline.prompts)


def named(models: Iterable[tuple[str, T]]) -> dict[str, T]:
    """What is served, by name.

    Raises:
        ValueError: If two have the same name.
    """
    found: dict[str, T] = {}
    for name, model in models:
        if name in found:
            raise ValueError(f"models must have names of their own, two are {name!r}: give NAME=FOLDER")
        found[name] = model
    return found


def load_model(
    given: str, *, threads: int = 0, loras: Mapping[str, Path] | None = None, **arguments: Any
) -> ServedModel:
    """Loads a bundle, with its pipeline where it takes prompts.

    Args:
        given: As in ``find_model``.
        threads: As in ``Engine.load``.
        loras: Files of LoRAs that requests can choose, by name; what they take has no bound unless ``lora_bytes`` is
            among the arguments.
        **arguments: More of it, or of ``TextToImage.load``.

    Raises:
        BundleError: If it cannot be used.
        LoraError: If a LoRA cannot be used with it.
        ValueError: If it cannot be served.
    """
    name, bundle = find_model(given)
    if loras:
        arguments = {"lora_bytes": UNBOUNDED, **arguments}
    loaded: TextToImage | Engine = (
        TextToImage.load(bundle, threads=threads, **arguments)
        if takes_prompts(bundle)
        else Engine.load(bundle, threads=threads, **arguments)
    )
    try:
        for lora, file in (loras or {}).items():
            loaded.add_lora(lora, file)
        if isinstance(loaded, TextToImage):
            return PromptModel(name, loaded)
        return ClassModel(name, loaded, bundle=bundle, threads=threads)
    except BaseException:
        loaded.close(abort=True)
        raise


def loras_by_model(
    argument: str, given: Iterable[tuple[str, str | os.PathLike[str]]], models: Sequence[str]
) -> dict[str, dict[str, Path]]:
    """Files of LoRAs by model and name.

    Args:
        argument: What messages call them.
        given: ``NAME`` or ``MODEL/NAME``, and a file each; the first model has those that name none.
        models: Names of the models.

    Raises:
        ValueError: If a name is missing, there is no such model, or a name comes twice.
    """
    found: dict[str, dict[str, Path]] = {}
    for place, file in given:
        model, slash, name = place.rpartition("/")
        if not name:
            raise ValueError(f"{argument} must have NAME or MODEL/NAME for each file, got {place!r}")
        if slash and model not in models:
            raise ValueError(f"{argument} must be of a model that is served ({listed(models)}), got {place!r}")
        own = found.setdefault(model if slash else models[0], {})
        if name in own:
            raise ValueError(f"{argument} must name each once, got {place!r} too")
        own[name] = Path(file)
    return found


def read_costs(path: Path) -> dict[str, CostCurve]:
    """Costs by the models' names, as ``costs_text`` writes them.

    Raises:
        ValueError: If the file holds something else.
        OSError: If it cannot be read.
    """
    given = parse_json(path.read_bytes())
    try:
        return {str(name): CostCurve(**one) for name, one in given.items()}
    except (AttributeError, TypeError) as error:
        rule = 'costs by name, such as {"fashion": {"fixed": 0.001, "row": 0.002}}'
        raise ValueError(f"{path} must hold {rule}, got {brief(given)}") from error


def costs_text(costs: Mapping[str, CostCurve]) -> str:
    """The text of such a file."""
    return json.dumps({name: {"fixed": one.fixed, "row": one.row} for name, one in costs.items()}, indent=2) + "\n"
