"""The conditioning inputs that a network declares."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.display import brief, did_you_mean, listed, one_line

_NAMES_SHOWN = 20  # of a thousand classes a message names so many


# Kinds of numpy's types that are taken for one: a truth value is no class, and a fraction no whole number.
_KINDS = {"f": "fiub", "i": "iu", "b": "biu"}

MAX_ELEMENTS = 1 << 25  # of one row of all inputs; the longest contexts of text encoders take a tenth of it
_MOST_DIMENSIONS = 16
_DTYPES = ("float32", "float16", "int64", "int32", "bool")
_FREE = {"size": 2, "length": 1}  # dimensions that each needs


@dataclass(frozen=True)
class CondInput:
    """One conditioning input of a network, a row at a time.

    Attributes:
        dtype: ``float32``, ``float16``, ``int64``, ``int32`` or ``bool``.
        shape: Shape of one row; () is a number a row.
        null: What stands for "no condition": an array of ``shape``, or a number that fills it.
        names: Class names, for an integer input: a name stands for its index, whatever its case and signs.
        free: Which of its sizes a request may choose: ``size``, the last two, which keep their proportion to the
            sample's; ``length``, the first, a number of tokens; None: none.

    Examples:
        >>> label = sf.CondInput(dtype="int64", shape=(), names=("cat", "dog"), null=2)
        >>> label.value("label", "dog"), label.value("label", None), label.elements
        (array(1), array(2), 1)
        >>> label.values("label", ["cat", None], 2)
        [array(0), array(2)]
    """

    dtype: str = "int64"
    shape: tuple[int, ...] = ()
    null: Any = field(kw_only=True)  # no default: whatever it were, some model has it as a class
    names: tuple[str, ...] = ()
    free: str | None = None

    __repr__ = one_line

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {brief(self.dtype)}")
        if isinstance(self.names, str) or not all(isinstance(name, str) for name in self.names):
            raise ValueError(f"names must be a list of texts, got {brief(self.names)}")
        object.__setattr__(self, "shape", tuple(operator.index(size) for size in self.shape))
        object.__setattr__(self, "names", tuple(self.names))
        if len(self.shape) > _MOST_DIMENSIONS or min(self.shape, default=1) < 1 or self.elements > MAX_ELEMENTS:
            raise ValueError(
                f"shape must be at most {_MOST_DIMENSIONS} sizes of at least 1, at most 2^25 in all, got"
                f" {brief(self.shape)}"
            )
        if self.free is not None and not (isinstance(self.free, str) and len(self.shape) >= _FREE.get(self.free, 99)):
            raise ValueError(
                f"free must be 'size' with two sizes or more, 'length' with one, or None, got {brief(self.free)} with"
                f" {brief(self.shape)}"
            )
        if self.free is not None and np.ndim(self.null):
            raise ValueError(f"null must be one number where sizes are free, got {brief(self.null)}")
        if isinstance(self.null, str) or np.ndim(self.null):
            self.value("null", None)
        else:
            self._converted("null", np.asarray(self.null), self.null)

    @property
    def elements(self) -> int:
        """Numbers of one row."""
        return math.prod(self.shape)

    def resized(self, own: Sequence[int], shape: Sequence[int], tokens: int | None = None) -> CondInput:
        """The same input beside samples of another shape, and with another number of tokens.

        Args:
            own: Shape of the sample that ``self.shape`` is meant for.
            shape: Shape of the other sample.
            tokens: None leaves them.

        Raises:
            ValueError: If the sizes are not in proportion to those of ``own``, or too large.

        Examples:
            >>> sf.CondInput("float32", (77, 768), null=0.0, free="length").resized((4, 64, 64), (4, 64, 64), 154).shape
            (154, 768)
        """
        if self.free == "length" and tokens is not None:
            return replace(self, shape=(tokens, *self.shape[1:]))
        if self.free != "size" or tuple(own) == tuple(shape):
            return self
        sides = [(side * new, old) for side, old, new in zip(self.shape[-2:], own[-2:], shape[-2:], strict=True)]
        if any(product % old for product, old in sides):
            raise ValueError(f"free sizes must be in proportion to the sample's, got {self.shape} beside {tuple(own)}")
        return replace(self, shape=(*self.shape[:-2], *(product // old for product, old in sides)))

    def value(self, name: str, given: Any) -> npt.NDArray[Any]:
        """One row's value as an array of this input's dtype and shape. ``None`` is the null value.

        Raises:
            ValueError: If a class name is unknown, a number out of range, or the shape differs.
            TypeError: If the value cannot be had in this dtype.
        """
        if given is None:
            given = self.null if isinstance(self.null, str) or np.ndim(self.null) else np.full(self.shape, self.null)
        if isinstance(given, str):
            given = self._index(name, given)
        array = np.asarray(given)
        if array.shape != self.shape:
            raise ValueError(f"{name} must have shape {self.shape}, got {array.shape}")
        return self._converted(name, array, given)

    def _converted(self, name: str, array: npt.NDArray[Any], given: Any) -> npt.NDArray[Any]:
        if array.dtype.kind not in _KINDS[np.dtype(self.dtype).kind]:
            raise TypeError(f"{name} must be {self.dtype}, got {given!r} of type {array.dtype}")
        if self.names and not self._known(array):
            raise ValueError(f"{name} must be a class from 0 to {len(self.names) - 1}, got {given}")
        if array.dtype == self.dtype:  # a class, nearly always: nothing is converted
            return array.copy()
        with np.errstate(over="ignore"):
            value = np.array(array, dtype=self.dtype, order="C")
        if not _same(value, array):
            raise ValueError(f"{name} must fit {self.dtype}, got {given}")
        return value

    def values(self, name: str, given: Any, count: int) -> list[npt.NDArray[Any]]:
        """A value a sample, from one for all or a sequence of one each."""
        if self._is_sequence(given):
            if len(given) != count:
                raise ValueError(f"{name} must be one value, or one for each of the {count} samples, got {len(given)}")
            return [self.value(name, one) for one in given]
        return [self.value(name, given)] * count

    def _is_sequence(self, given: Any) -> bool:
        if given is None or isinstance(given, str | bytes):
            return False
        if isinstance(given, np.ndarray):
            return given.ndim == len(self.shape) + 1
        if not isinstance(given, Sequence):
            return False
        # A plain list is one value only where it nests as deeply as the shape.
        holds_values = any(one is None or isinstance(one, str) for one in given)
        return holds_values or np.ndim(given) == len(self.shape) + 1

    def _index(self, name: str, given: str) -> int:
        if not self.names:
            raise ValueError(f"{name} has no class names, got {given!r}")
        if given in self.names:
            return self.names.index(given)
        alike = [index for index, known in enumerate(self.names) if _plain(known) == _plain(given) != ""]
        if len(alike) != 1:
            more = f" and {len(self.names) - _NAMES_SHOWN} more" if len(self.names) > _NAMES_SHOWN else ""
            hint = did_you_mean(given, self.names)
            raise ValueError(f"{name} must be one of {listed(self.names[:_NAMES_SHOWN])}{more}, got {given!r}{hint}")
        return alike[0]

    def _known(self, array: npt.NDArray[Any]) -> bool:
        if not array.ndim:  # numpy takes ten times as long for one number
            return bool(0 <= array.item() < len(self.names) or array.item() == self.null)
        return bool(np.all((array >= 0) & (array < len(self.names)) | (array == self.null)))


def _plain(name: str) -> str:
    """A class name without case and signs: ``Ankle-Boot`` is ``ankle boot``."""
    return " ".join(re.findall(r"\w+", name.casefold().replace("_", " ")))


def _same(value: npt.NDArray[Any], given: npt.NDArray[Any]) -> bool:
    """Whether a conversion kept the value: floats may be rounded, but must not overflow."""
    if value.dtype.kind == "f":
        return np.array_equal(np.isfinite(value), np.isfinite(given))
    return np.array_equal(value, given)
