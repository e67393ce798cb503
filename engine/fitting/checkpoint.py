"""The best round of a fit so far, in a file, from which an interrupted fit goes on."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stepfuse.files.atomic import write_atomically
from stepfuse.fitting.search import Round
from stepfuse.fitting.student import Student


@dataclass(frozen=True)
class Checkpoint:
    """A file of numbers, and of the arguments that they were fitted with.

    Attributes:
        path: The file.
        arguments: What a fit has to have in common with the one that wrote it, as JSON can say it.
    """

    path: Path
    arguments: Mapping[str, Any]

    def write(self, one: Round) -> None:
        """Keeps a round: all of it, or the one before stays."""
        said = json.dumps(dict(self.arguments), sort_keys=True)
        facts = np.array([one.damping, one.error, one.held_out])
        contents: dict[str, Any] = {"numbers": one.student.numbers, "facts": facts, "arguments": np.array(said)}

        def save(file: Path) -> None:
            with file.open("wb") as stream:
                np.savez(stream, **contents)

        write_atomically(self.path, save)

    def read(self, like: Student) -> Round | None:
        """What was kept, as a student of this form; None where there is no file.

        Raises:
            ValueError: If it is no such file, or of a fit with other arguments.
        """
        try:
            with np.load(self.path, allow_pickle=False) as kept:
                said, numbers, facts = json.loads(str(kept["arguments"])), kept["numbers"], kept["facts"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"checkpoint must be a file that a fit has written, got {self.path}: {error}") from error
        if said != self.arguments or numbers.shape != like.numbers.shape or facts.shape != (3,):
            differ = [name for name in self.arguments if said.get(name) != self.arguments[name]]
            raise ValueError(
                f"checkpoint must be of a fit with the same arguments, {self.path} differs in {', '.join(differ)}:"
                " give another file, or remove it"
            )
        return Round(replace(like, numbers=numbers), *map(float, facts))
