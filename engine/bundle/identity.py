"""Which model it is: its name, and what its files hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stepfuse.bundle.bundle import DENOISER, Bundle

_PLANS = "plans/"  # compiled from the other files, for one GPU


@dataclass(frozen=True)
class ModelIdentity:
    """A model as pictures name it.

    Attributes:
        name: The bundle's name.
        files: SHA-256 of each file that a picture depends on, as the manifest lists it, in hexadecimal.
        computed_by: Library and precision where they are not ONNX Runtime and the network's own: ``openvino bf16``.
    """

    name: str
    files: Mapping[str, str] = field(default_factory=dict)
    computed_by: str = ""

    @classmethod
    def of(cls, bundle: Bundle, computed_by: str = "") -> ModelIdentity:
        """That of a bundle, as a library computes it.

        TensorRT plans, which are made of its other files, do not count, nor do tables: a picture names its own.
        """
        files = {name: str(entry["sha256"]) for name, entry in sorted(bundle.files.items())}
        left_out = {name for name in files if name.startswith(_PLANS) or name in bundle.info.tables}
        kept = {name: digest for name, digest in files.items() if name not in left_out}
        return cls(bundle.name, kept, computed_by)

    @property
    def weights(self) -> str:
        """Digest of the file that holds the denoiser's weights; empty if no file is known."""
        apart = [name for name in self.files if name.startswith(f"{DENOISER}.")]
        return self.files.get(apart[0] if apart else DENOISER, "")

    def differences(self, other: ModelIdentity) -> list[str]:
        """What differs between two models, a text each: files that have other contents, or that one of them lacks."""
        found = []
        for name in sorted({*self.files, *other.files}):
            own, others = self.files.get(name), other.files.get(name)
            if own != others:
                found.append(f"{name} is {_short(own)}, was {_short(others)}")
        return found

    def __repr__(self) -> str:
        return f"<ModelIdentity {self.name!r}, {len(self.files)} files, weights {_short(self.weights or None)}>"


def _short(digest: str | None) -> str:
    return "not there" if digest is None else digest[:10]
