"""The strength of a LoRA's pairs, wherever a file states it.

A pair has its own alpha beside its matrices (kohya); or all have one in the metadata that diffusers writes into the
file; or in ``adapter_config.json`` beside the file, as PEFT's ``save_pretrained`` writes it. Nowhere stated it is 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepfuse.display import NAME, printable
from stepfuse.errors import LoraError
from stepfuse.lora.patterns import NamePattern

_DIFFUSERS_METADATA = "lora_adapter_metadata"
_PEFT_FILE, _PEFT_CONFIG, _PEFT_PREFIX = "adapter_model.safetensors", "adapter_config.json", "base_model.model."

# Options with which a model computes more than its weights and the pairs' products.
_OTHER_CHANGES = ("use_dora", "use_qalora", "layer_replication", "alora_invocation_tokens")

_MAX_PATTERNS = 10_000  # more than a network has modules

# Ways to begin a training that change the base model's weights: the pairs fit those, not the model's own.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "orthogonal")


@dataclass(frozen=True)
class Strength:
    """What one configuration says of its modules.

    Attributes:
        alpha: Of all modules that no pattern matches; None: not stated.
        patterns: Patterns of module names and their alphas, as PEFT reads them: the first that matches.
        rslora: Whether the scale is alpha / sqrt(rank) (Kalajdzievski, 2023) instead of alpha / rank.
    """

    alpha: float | None = None
    patterns: Sequence[tuple[NamePattern, float]] = ()
    rslora: bool = False

    def scale(self, module: str, rank: int, own_alpha: float | None) -> float:
        """The scale of one pair; 1 without an alpha."""
        alpha = self.alpha if own_alpha is None else own_alpha
        if own_alpha is None:
            alpha = next((value for pattern, value in self.patterns if pattern.matches(module)), alpha)
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.rslora else rank)


@dataclass(frozen=True)
class Scales:
    """Strengths by the component that a pair's name begins with; of PEFT's own files, one for all."""

    components: Mapping[str, Strength]
    peft: Strength | None = None

    def scale(self, name: str, rank: int, alpha: float | None) -> float:
        """The scale of the pair of this name and rank; ``alpha`` is its own, where it has one."""
        if self.peft is not None:
            return self.peft.scale(name.removeprefix(_PEFT_PREFIX), rank, alpha)
        component, _, module = name.partition(".")
        return self.components.get(component, Strength()).scale(module, rank, alpha)


def read_scales(file: Path, metadata: Mapping[str, str]) -> Scales:
    """Reads what is stated in a file's metadata, or beside it.

    Args:
        file: The LoRA.
        metadata: Of its header.

    Raises:
        LoraError: If it is not readable, or says that the pairs are no plain change of the model's own weights.
    """
    beside = file.with_name(_PEFT_CONFIG)
    if file.name == _PEFT_FILE and beside.is_file():
        return Scales({}, _of_peft(beside))
    stated = _object(f"{file}: {_DIFFUSERS_METADATA}", metadata.get(_DIFFUSERS_METADATA, "{}"))
    components = {key.rpartition(".")[0] for key in stated if key.endswith((".lora_alpha", ".alpha_pattern"))}
    components |= {key.removesuffix(".use_rslora") for key in stated if key.endswith(".use_rslora")}
    return Scales(
        {
            component: _strength(f"{file}: {_DIFFUSERS_METADATA}: {component}", stated, f"{component}.")
            for component in components
        }
    )


def _of_peft(file: Path) -> Strength:
    try:
        config = _object(str(file), file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise LoraError(f"{file} is not readable: {error}") from error
    if config.get("peft_type") != "LORA":
        raise LoraError(f"{file}: peft_type must be 'LORA', got {_shown(config.get('peft_type'))}")
    for option in _OTHER_CHANGES:
        if config.get(option) not in (None, False):
            raise LoraError(
                f"{file}: {option} must be unset, got {_shown(config[option])}: then the pairs are not all that changes"
            )
    if config.get("fan_in_fan_out") not in (None, False):
        raise LoraError(
            f"{file}: fan_in_fan_out must be false, got {_shown(config['fan_in_fan_out'])}: weights are (out, in)"
        )
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_CHANGED_BASE):
        raise LoraError(
            f"{file}: init_lora_weights must leave the base model's weights as they are, got {begun!r}: convert the"
            " adapter with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    return _strength(str(file), {"lora_alpha": 8, **config})  # PEFT's own default


def _strength(where: str, stated: Mapping[str, Any], prefix: str = "") -> Strength:
    alpha, patterns = stated.get(f"{prefix}lora_alpha"), stated.get(f"{prefix}alpha_pattern")
    patterns = {} if patterns is None else patterns
    rslora = stated.get(f"{prefix}use_rslora")
    if not isinstance(patterns, dict):
        raise LoraError(f"{where}: alpha_pattern must be an object, got {_shown(patterns)}")
    if rslora is not None and not isinstance(rslora, bool):
        raise LoraError(f"{where}: use_rslora must be true or false, got {_shown(rslora)}")
    if len(patterns) > _MAX_PATTERNS:
        raise LoraError(f"{where}: alpha_pattern must have at most {_MAX_PATTERNS} patterns, got {len(patterns)}")
    found = []
    for text, value in patterns.items():
        try:
            pattern = NamePattern(text)
        except ValueError as error:
            raise LoraError(
                f"{where}: alpha_pattern must have regular expressions of names, got {_shown(text)}: {error}"
            ) from error
        found.append((pattern, _number(f"{where}: alpha_pattern[{_shown(text)}]", value)))
    return Strength(None if alpha is None else _number(f"{where}: lora_alpha", alpha), tuple(found), bool(rslora))


def _object(where: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LoraError(f"{where} must be JSON: {error}") from error
    if not isinstance(found, dict):
        raise LoraError(f"{where} must be an object, got {_shown(found)}")
    return found


def _number(where: str, value: Any) -> float:
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:  # of a whole number that no float holds
        pass
    raise LoraError(f"{where} must be a finite number, got {_shown(value)}")


def _shown(value: Any) -> str:
    """A value of the file in a message, which a long one does not fill."""
    try:
        return printable(repr(value), NAME)
    except (ValueError, RecursionError):  # of a whole number of too many digits, or an object in an object in ...
        return type(value).__name__
