"""An ONNX file together with the files that hold weights of it, all open, and what it may name.

A graph can name files of the machine that reads it: tensors with external data, in initializers, attributes, subgraphs
and functions, and ``EPContext`` nodes, which load a compiled engine. Here the locations of the main graph's
initializers are read from the file's own bytes, and have to be files that were checked; all else is refused. Field
numbers are those of onnx.proto.
"""

from __future__ import annotations

import mmap
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stepfuse.bundle.open_file import OpenFile
from stepfuse.bundle.wire import BYTES, Bytes, fields
from stepfuse.errors import BundleError

_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _SPARSE, _FUNCTION, _TRAINING, _TENSOR, _ENTRY, _OPERATOR = range(10)
_INSIDE: dict[int, dict[int, int]] = {  # messages that lead to tensors: kind of each field by its number
    _MODEL: {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {4: _OPERATOR, 5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {13: _ENTRY},
}
_INPUT = 1  # of a node: a name, empty where an input is left out
#: Operators that read every input, however many: ONNX Runtime (1.32) does not check that each is there, and crashes.
_OF_ALL_INPUTS = {b"Concat", b"Einsum", b"Max", b"Mean", b"Min", b"SequenceConstruct", b"Sum"}
_INITIALIZER = 2  # messages around a tensor that is an initializer of the main graph: the model, the graph
_DEEPEST = 100  # messages in messages, as protobuf's own readers have it
_MOST_FIELDS = 20_000_000
_LONGEST_NAME = 4096
_MEMORY = "_ORT_MEM_ADDR_"  # in the location of a tensor that ONNX Runtime itself has put into its memory


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file and its external data.

    Attributes:
        file: The ONNX file.
        data: Files with weights, by their locations as the graph has them.
    """

    file: OpenFile
    data: Mapping[str, OpenFile]

    @classmethod
    def open(cls, path: Path) -> OnnxFile:
        """A file by itself; its external data may lie beside or below it.

        Raises:
            BundleError: If it or a file that it names cannot be opened, or it names one that lies elsewhere.
        """
        folder = path.resolve().parent

        def beside(name: str) -> OpenFile:
            found = OpenFile(path.parent / name)
            if not found.leads_to.is_relative_to(folder):
                raise BundleError(f"{path}: external data must lie in its folder, got {found.leads_to}")
            return found

        try:
            return cls.of(OpenFile(path), "", beside)
        except OSError as error:
            raise BundleError(f"{path} does not load: {error}") from error

    @classmethod
    def of(cls, file: OpenFile, folder: str, open_data: Callable[[str], OpenFile]) -> OnnxFile:
        """An open ONNX file with the files that it names.

        Args:
            file: The ONNX file.
            folder: Where it lies, as a path from the root of what may be opened.
            open_data: Opens a file by its path from there.

        Raises:
            BundleError: If it is no ONNX file, has ``EPContext`` nodes, or a location leads out of the folder.
        """
        content = file.mapped()
        try:
            locations = _locations(content)
        except ValueError as error:
            raise BundleError(f"{file.path} must be an ONNX file: {error}") from error
        finally:
            if isinstance(content, mmap.mmap):
                content.close()
        data = {}
        for location in sorted(locations):
            inside = PurePosixPath(location)
            if (
                not location
                or _MEMORY in location
                or inside.is_absolute()
                or ".." in inside.parts
                or "\\" in location
                or "\0" in location
            ):
                raise BundleError(f"{file.path}: external data must lie in the model's folder, got {location!r}")
            data[location] = open_data((PurePosixPath(folder) / inside).as_posix())
        return cls(file, data)

    @property
    def path(self) -> Path:
        """Path of the ONNX file, for messages."""
        return self.file.path

    @contextmanager
    def laid_out(self, *, copied: bool = False) -> Iterator[str]:
        """A path that leads to the open file, with the open external data where their locations say.

        Args:
            copied: Whether files beside each other are copies, for a library that follows no links out of a folder.
        """
        if not self.data:
            yield self.file.link
            return
        with tempfile.TemporaryDirectory(prefix="stepfuse-") as folder:
            for name, file in {self.path.name: self.file, **self.data}.items():
                place = Path(folder, name)
                place.parent.mkdir(parents=True, exist_ok=True)
                if copied:
                    shutil.copyfile(file.link, place)
                else:
                    place.symlink_to(file.link)
            yield str(Path(folder, self.path.name))

    def require_unchanged(self) -> None:
        """Checks that what was loaded is what was checked.

        Raises:
            BundleError: If one of the files was written to meanwhile.
        """
        for file in (self.file, *self.data.values()):
            file.require_unchanged()


def _locations(data: Bytes) -> set[str]:
    """Locations of the external data of a model's initializers.

    Raises:
        ValueError: If the bytes are no ONNX model, another tensor than an initializer of the main graph has a location,
            which ONNX Runtime would look up itself, or a node loads a compiled engine or lacks an input.
    """
    found: set[str] = set()
    count = 0
    messages = [(_MODEL, 0, len(data), 0)]
    while messages:
        kind, start, end, depth = messages.pop()
        if depth > _DEEPEST:
            raise ValueError(f"messages must nest at most {_DEEPEST} deep")
        operator, left_out = b"", False
        for number, wire, at, stop in fields(data, start, end):
            count += 1
            if count > _MOST_FIELDS:
                raise ValueError(f"it must have at most {_MOST_FIELDS} fields")
            inside = _INSIDE[kind].get(number) if wire == BYTES else None
            if inside == _OPERATOR:
                operator = data[at:stop]
                if operator == b"EPContext":
                    raise ValueError("nodes must be operators of a graph, got EPContext, which loads a compiled engine")
            elif inside == _ENTRY:
                named = _location(data, at, stop)
                if named and depth != _INITIALIZER:
                    raise ValueError(
                        f"external data must be of the main graph's initializers, got {named[0]!r} elsewhere"
                    )
                found.update(named)
            elif inside is not None:
                messages.append((inside, at, stop, depth + 1))
            left_out |= kind == _NODE and number == _INPUT and at == stop
        if left_out and operator in _OF_ALL_INPUTS:
            raise ValueError(f"all inputs of {operator.decode()} must be there, got one without a name")
    return found


def _location(data: Bytes, start: int, end: int) -> list[str]:
    """The value of an entry of external_data whose key is ``location``."""
    texts = {1: b"", 2: b""}
    for number, wire, at, stop in fields(data, start, end):
        if number in texts and wire == BYTES:
            if stop - at > _LONGEST_NAME:
                raise ValueError(f"a location must have at most {_LONGEST_NAME} bytes, got {stop - at}")
            texts[number] = bytes(data[at:stop])
    return [texts[2].decode("utf-8")] if texts[1] == b"location" else []
