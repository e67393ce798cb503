"""Numbers inside of sentences and labels: their digits, their nouns, and what has become more or less."""

from __future__ import annotations


def short(value: float, digits: int = 3) -> str:
    """A number in so many digits, or as a whole number where it has more, up to a million; minus zero is ``0``."""
    written = f"{value + 0.0:.{digits}g}"
    return f"{value:.0f}" if 10**digits <= abs(float(written)) < 1e6 else written


def plural(count: float, noun: str, nouns: str = "") -> str:
    """Such as ``1 step``, ``0 steps`` or ``2.5 passes``.

    Args:
        count: How many there are; it is the written number that decides: 0.9999 is written ``1``.
        noun: The word for one.
        nouns: The word for several, if it is not ``noun`` with an s.
    """
    written = short(count)
    return f"{written} {noun if written == '1' else nouns or noun + 's'}"


def saving(share: float, of: str) -> str:
    """What a share saves, as the end of "which ...": ``saves 20% of the passes``, ``takes 58% more of the time``.

    Args:
        share: 1 saves all of it, 0 nothing; a negative one costs more.
        of: What is saved, such as ``the time``.
    """
    written = f"{abs(share):.0%}"
    if written == "0%":
        return f"saves nothing of {of}"
    return f"saves {written} of {of}" if share > 0 else f"takes {written} more of {of}"
