"""The file of a table: an ``.npz`` of its rows and of a JSON text with all else, without pickled objects."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.display import brief
from stepfuse.files.atomic import write_atomically
from stepfuse.files.npz import read_npz
from stepfuse.files.strict_json import parse_json
from stepfuse.samplers.adaptation import ADAPTIVE

_ARRAYS = ("rows", "levels")  # the first has to be there
MOST_BYTES = 128 << 20  # packed and unpacked: a million steps of one line take half of it


Array = npt.NDArray[Any]


def write_table(path: str | os.PathLike[str], arrays: Mapping[str, Array], header: Mapping[str, Any]) -> None:
    """Writes the file: at ``path`` is what was there before, or all of this.

    Raises:
        TypeError: If JSON has no word for something in the header.
    """
    contents: dict[str, Any] = {**arrays, "header": np.array(json.dumps(dict(header), default=_of_numpy))}

    def write(file: Path) -> None:
        with file.open("wb") as stream:
            np.savez(stream, **contents)

    write_atomically(Path(path), write)


def read_table(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays by name, ``rows`` float32 (S, 16 or 32) and maybe ``levels``, and the header, each value of its type.

    Raises:
        ValueError: If the file is larger than 128 MiB, or anything in it is not as ``write_table`` writes it.
        OSError: If it cannot be read.
    """
    with open(path, "rb", opener=_without_waiting) as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            raise ValueError(f"it must be a file of at most {MOST_BYTES} bytes, got {status.st_size}")
        arrays = read_npz(stream.read(MOST_BYTES), MOST_BYTES)
    if not {"header", *_ARRAYS} >= arrays.keys() >= {"header", "rows"}:
        raise ValueError(f"it must hold header and {', '.join(_ARRAYS)}, got {brief(sorted(arrays))}")
    text, rows = arrays.pop("header"), arrays["rows"]
    if rows.dtype != np.float32 or rows.ndim != 2:
        raise ValueError(f"rows must be float32 (S, 16) or (S, 32), got {rows.dtype} {rows.shape}")
    if text.dtype.kind != "U" or text.ndim:
        raise ValueError(f"header must be a text, got {text.dtype} {text.shape}")
    if "levels" in arrays and arrays["levels"].dtype != np.float64:
        raise ValueError(f"levels must be float64 (S + 1, 2), got {arrays['levels'].dtype}")
    return arrays, _checked(parse_json(str(text).encode("utf-8")))


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe without a writer would block


def _of_numpy(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"options must be what JSON can say, got {value!r}")


def _checked(header: Any) -> dict[str, Any]:
    if not isinstance(header, dict):
        raise ValueError(f"header must be an object, got {brief(header)}")
    names = {"sampler", "options", "init_scale", "max_timestep", "min_timestep", "zero_init", *ADAPTIVE}
    if unknown := header.keys() - names:
        raise ValueError(f"header must have {', '.join(sorted(names))} alone, got {brief(sorted(unknown))}")
    found = dict(header)
    kinds = {
        "sampler": str,
        "options": dict,
        "apg_form": str,
        "cfg_zero_star": bool,
        "cfg_renorm": int,
        "zero_init": int,
    }
    for name, kind in kinds.items():
        if name in found and type(found[name]) is not kind:
            raise ValueError(f"{name} must be a {kind.__name__}, got {brief(found[name])}")
    for name in ("init_scale", "max_timestep", "min_timestep", "guidance_rescale"):
        if name in found and not (name == "max_timestep" and found[name] is None):
            found[name] = _number(name, found[name])
    for name in ("dynamic_threshold", "apg"):
        pair = found.get(name)
        if pair is not None:
            if not isinstance(pair, list) or len(pair) != 2:
                raise ValueError(f"{name} must be two numbers, got {brief(pair)}")
            found[name] = tuple(_number(name, one) for one in pair)
    return found


def _number(name: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or (isinstance(value, int) and value.bit_length() > 1023) or math.isnan(value):
        raise ValueError(f"{name} must be a number, got {brief(value)}")
    return float(value)
