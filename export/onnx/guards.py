"""Branches on sizes that a capture has fixed: torch guards what its program holds for, and this finds the rest.

``torch.export`` follows one side of ``if x.shape[0] > 4`` and notes the condition as a guard. ONNX has no guards, so a
graph would silently compute that side for every number of rows. The guards are read from torch's log, which alone has
both condition and line; those of torch's own code choose between ways to the same values.
"""

from __future__ import annotations

import functools
import importlib.util
import linecache
import logging
import os
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepfuse.errors import ExportError
from stepfuse.extras import pip_install

try:
    import sympy
    import torch
    from torch.utils._sympy import functions
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error

_LOGGER = "torch.fx.experimental.symbolic_shapes"

#: Code whose branches on sizes change no value: torch itself, and diffusers' upsampling, which copies 64 rows and more.
_HARMLESS = ("torch/", "diffusers/models/upsampling.py")
#: torch's functions that follow what the module asked for: how many parts a split has, where a slice ends.
_DECISIVE = ("split", "_compute_slice_index")
_TRUSTED_FOR_SIZES = ("torch/", "diffusers/", "transformers/")  # whose rules for sizes the plan of a pipeline knows

_ROW = sympy.Symbol("rows", positive=True, integer=True)
_ROWS = (*range(2, 130), 255, 256, 257, 511, 512, 513, 1000, 1024, 4095, 4096, 4097)
_SIZES = (*range(2, 66), 96, 127, 128, 129, 255, 256, 257, 512, 513, 1024)
_SIZE = 8  # of those that are not being tried


@dataclass(frozen=True)
class Guard:
    """A condition that a captured program holds for.

    Attributes:
        condition: As torch writes it.
        frame: The line that asked for it.
    """

    condition: str
    frame: traceback.FrameSummary

    @property
    def place(self) -> str:
        """File, line and source, as far as they are known."""
        line = self.frame.line or linecache.getline(self.frame.filename, self.frame.lineno or 0)
        return f"{Path(self.frame.filename).name}:{self.frame.lineno}: {line.strip()}".removesuffix(": ")

    def is_in(self, packages: Sequence[str]) -> bool:
        """Whether the line is of one of these packages or files."""
        return any(self.frame.filename.startswith(_installed(one)) for one in packages)


@functools.cache
def _installed(package: str) -> str:
    """Where the files of an installed package begin, such as ``torch/``, or one of its files is."""
    name, _, rest = package.partition("/")
    spec = importlib.util.find_spec(name)
    folder = f"no {name}" if spec is None or spec.origin is None else str(Path(spec.origin).parent)
    return f"{folder}{os.sep}{rest.replace('/', os.sep)}"


@contextmanager
def recorded_guards() -> Iterator[list[Guard]]:
    """The guards that torch adds in the meantime."""
    found: list[Guard] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            args = record.args if isinstance(record.args, tuple) else ()
            if "[guard added]" in str(record.msg) and len(args) > 2 and "suppressed" not in str(args[0]):
                frame = getattr(args[2], "framework_loc", None)
                if isinstance(frame, traceback.FrameSummary):
                    found.append(Guard(str(args[1]), frame))

    logger, handler = logging.getLogger(_LOGGER), Handler()
    level, propagate, handlers = logger.level, logger.propagate, logger.handlers
    try:
        logger.setLevel(logging.INFO)
        logger.propagate, logger.handlers = False, [handler]  # torch's own would print all of it
        yield found
    finally:
        logger.propagate, logger.handlers = propagate, handlers
        logger.setLevel(level)


def refuse_branches(kind: str, guards: Sequence[Guard], program: torch.export.ExportedProgram) -> None:
    """Refuses a program that holds for some numbers of rows, or for some sizes, alone.

    Args:
        kind: The module's class, for messages.
        guards: Those that ``recorded_guards`` saw while it was captured.
        program: The program.

    Raises:
        ExportError: If a guard fails for a number of rows or a size from 2 on; with the guard as torch writes it, the
            line, and the least number of rows that it fails for. One row is what ``validate`` compares.
    """
    symbols = _Symbols(program)
    for guard in {(one.condition, one.place): one for one in guards}.values():
        if guard.is_in(_HARMLESS) and guard.frame.name not in _DECISIVE:
            continue
        condition = symbols.parse(guard.condition)
        if condition is None or (symbols.has_sizes(condition) and guard.is_in(_TRUSTED_FOR_SIZES)):
            continue
        if (failing := symbols.counterexample(condition)) is not None:
            raise ExportError(
                f"{kind} must compute the same for every number of rows and every free size, got a branch: torch's"
                f" guard is {symbols.named(guard.condition)} ({guard.place}), which fails at {failing}: a graph has one"
                " side of it: rewrite that part, or give a size that it fixes as a number"
            )


class _Symbols:
    """torch's symbols of the leading sizes of inputs, which are all the rows, and of the other sizes."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        values = (node.meta.get("val") for node in program.graph.nodes)
        env: Any = next(one.fake_mode.shape_env for one in values if hasattr(one, "fake_mode"))
        self._names: dict[Any, str] = {}
        self._replaced: Mapping[Any, Any] = env.replacements
        self._ranges: Mapping[Any, Any] = env.var_to_range
        for symbol, sources in env.var_to_sources.items():
            source = str(sources[0].name() if callable(sources[0].name) else sources[0].name)
            self._names[symbol] = "rows" if source.endswith(".size()[0]") else source

    def parse(self, text: str) -> Any:
        """The condition with one symbol for all rows; None if it is about anything but inputs' sizes."""
        try:
            known = {str(symbol): symbol for symbol in self._names}
            condition = sympy.sympify(text, locals={**vars(functions), **known})
            condition = condition.xreplace({one: _ROW for one, name in self._names.items() if name == "rows"})
        except Exception:  # what sympy raises on text that is no condition
            return None
        return condition if condition.free_symbols <= {_ROW, *self._names} else None

    def has_sizes(self, condition: Any) -> bool:
        """Whether it depends on anything but the rows."""
        return bool(condition.free_symbols - {_ROW})

    def named(self, condition: str) -> str:
        """The condition with words for symbols."""
        for symbol, name in self._names.items():
            condition = re.sub(rf"\b{symbol}\b", name, condition)
        return condition

    def counterexample(self, condition: Any) -> str | None:
        """The first number of rows or size that breaks the condition, of those that the inputs allow."""
        sizes = sorted(condition.free_symbols - {_ROW}, key=str)
        for rows in _ROWS if _ROW in condition.free_symbols else ():
            if self._fails(condition, {_ROW: rows, **{one: self._size(one, _SIZE) for one in sizes}}):
                return f"{rows} rows"
        for size in _SIZES if sizes else ():
            for chosen in (sizes, *([one] for one in sizes)):
                values = {one: self._size(one, size if one in chosen else _SIZE) for one in sizes}
                if any(values[one] not in self._ranges[one] for one in chosen if one in self._ranges):
                    continue
                if self._fails(condition, {_ROW: 3, **values}):
                    return ", ".join(f"{self._names[one]} = {values[one]}" for one in chosen)
        return None

    def _size(self, symbol: Any, value: int) -> Any:
        """The size where the one that a run chooses has this value: a multiple of it, perhaps."""
        whole = self._replaced.get(symbol, symbol)
        return whole.xreplace(dict.fromkeys(whole.free_symbols, sympy.Integer(value)))

    @staticmethod
    def _fails(condition: Any, values: Mapping[Any, Any]) -> bool:
        return condition.xreplace({one: sympy.Integer(value) for one, value in values.items()}) in (False, sympy.false)
