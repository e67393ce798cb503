"""What the steps of a table take from the whole of their sample: values, their bounds, and how the core takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from stepfuse import _core

#: What the core calls each ``apg_form``: APG of predictions, or of clean estimates.
_APG_BLENDS = {"diffusers": "projected", "paper": "projected_clean"}


@dataclass(frozen=True, eq=False, kw_only=True)
class Adaptation:
    """What ``StepTable.adapt`` says.

    Attributes:
        guidance_rescale: As in ``StepTable.adapt``.
        dynamic_threshold: Likewise.
        apg: Likewise.
        apg_form: Likewise.
        cfg_zero_star: Likewise.
        cfg_renorm: Likewise.
    """

    guidance_rescale: float = 0.0
    dynamic_threshold: tuple[float, float] | None = None
    apg: tuple[float, float] | None = None
    apg_form: str = "diffusers"
    cfg_zero_star: bool = False
    cfg_renorm: int = 0

    def check_values(self) -> None:
        """Raises ValueError if a value is out of bounds, or two of them exclude each other.

        Examples:
            >>> sf.samplers.ddim(sf.NoiseSchedule.linear(), steps=4).check_values()
        """
        if not 0 <= self.guidance_rescale <= 1:
            raise ValueError(f"guidance_rescale must be between 0 and 1, got {self.guidance_rescale}")
        if self.dynamic_threshold is not None:
            ratio, largest = self.dynamic_threshold
            if not (0 < ratio <= 1 and largest >= 1):
                raise ValueError(
                    "dynamic_threshold must be (ratio, largest) with 0 < ratio <= 1 and largest >= 1,"
                    f" got {self.dynamic_threshold}"
                )
        self._check_apg()
        if self.cfg_renorm < 0:
            raise ValueError(
                f"cfg_renorm must be the side of a patch, at least 1, or 0 for none, got {self.cfg_renorm}"
            )
        for name, value in (("guidance_rescale", self.guidance_rescale), *self._blends.items()):
            if self.cfg_renorm and value:
                raise ValueError(
                    f"cfg_renorm must be left out with {name}: each is a way of guidance by itself,"
                    f" got {self.cfg_renorm} with {value}"
                )

    @property
    def _blends(self) -> dict[str, Any]:
        """Ways to blend both predictions other than by the guidance scale alone; None: not taken."""
        return {"apg": self.apg, "cfg_zero_star": self.cfg_zero_star or None}

    def _check_apg(self) -> None:
        if self.apg_form not in _APG_BLENDS:
            raise ValueError(f"apg_form must be {' or '.join(map(repr, _APG_BLENDS))}, got {self.apg_form!r}")
        if self.apg is None:
            if self.apg_form != "diffusers":
                raise ValueError(f"apg_form must be left out without apg, got {self.apg_form!r}")
            return
        eta, norm_threshold = self.apg
        if not (np.isfinite(eta) and np.isfinite(norm_threshold) and norm_threshold >= 0):
            raise ValueError(f"apg must be (eta, norm_threshold), both finite, the second at least 0, got {self.apg}")
        if (eta, norm_threshold) == (1, 0):
            raise ValueError(f"apg must be left out where it is plain guidance, as (1, 0) is, got {self.apg}")
        if self.cfg_zero_star:
            raise ValueError(
                f"apg must be left out with cfg_zero_star: both blend the two predictions, got {self.apg} with True"
            )

    @property
    def adaptation(self) -> dict[str, Any]:
        """All of it by name."""
        return {name: getattr(self, name) for name in ADAPTIVE}

    def adaptive_of(self, shape: Sequence[int]) -> _core.Adaptive:
        """All of it, as the core takes it for samples of this shape.

        Args:
            shape: Of one sample, (C, H, W).

        Raises:
            ValueError: If ``cfg_renorm`` is given and the shape is another, or H or W is not a multiple of it.

        Examples:
            >>> table = sf.samplers.euler(sf.NoiseSchedule.flow(), steps=4, guidance_scale=4.0).adapt(cfg_renorm=2)
            >>> type(table.adaptive_of((16, 8, 8))).__name__
            'Adaptive'
        """
        if self.cfg_renorm and (len(shape) != 3 or shape[1] % self.cfg_renorm or shape[2] % self.cfg_renorm):
            raise ValueError(
                "cfg_renorm must divide height and width of samples of shape (C, H, W), got"
                f" {self.cfg_renorm} for {tuple(shape)}"
            )
        ratio, largest = self.dynamic_threshold or (0.0, np.inf)
        eta, norm_threshold = self.apg or (1.0, 0.0)
        blend = "optimized_scale" if self.cfg_zero_star else "plain" if self.apg is None else _APG_BLENDS[self.apg_form]
        return _core.Adaptive(
            self.guidance_rescale,
            ratio,
            largest,
            blend=blend,
            eta=eta,
            norm_threshold=norm_threshold,
            renorm_patch=self.cfg_renorm,
            shape=(shape[0], shape[1], shape[2]) if self.cfg_renorm else (0, 0, 0),
        )


#: The names of these options, which every sampler has.
ADAPTIVE = tuple(one.name for one in fields(Adaptation))
