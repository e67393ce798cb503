"""Two results of one model: what became slower, what faster, and where nothing can be concluded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stepfuse.arguments import number
from stepfuse.benchmarking.result import BenchResult, Case
from stepfuse.benchmarking.timing import ratio_interval

Verdict = Literal["slower", "faster", "same", "unclear", "noisy"]


@dataclass(frozen=True)
class Comparison:
    """A case of two results.

    Attributes:
        case: Of the new one.
        ratio: Its median over that of the other result: above 1 is slower.
        low: Where the ratio lies at least, by the 95 % bootstrap interval of both medians.
        high: Where it lies at most.
        verdict: ``slower`` or ``faster`` if the interval lies wholly beyond the threshold, ``same`` if wholly within
            it, ``unclear`` if it reaches over, ``noisy`` if one of the two cases is.

    Examples:
        >>> from stepfuse.benchmarking import BenchResult, Case, Configuration, compare
        >>> def result(*seconds):
        ...     return BenchResult("my-model", {}, [Case(Configuration("onnxruntime"), 1, 0, 1, seconds)], {})
        >>> found = compare(result(0.12, 0.121, 0.12), result(0.1, 0.1, 0.101))
        >>> found.cases[0].verdict, f"{found.cases[0].ratio:.2f}", len(found.slower), found.undecided
        ('slower', '1.20', 1, [])
    """

    case: Case
    ratio: float
    low: float
    high: float
    verdict: Verdict


@dataclass(frozen=True)
class Compared:
    """Two results.

    Attributes:
        cases: Those that both have.
        missing: Cases that one of the two lacks, in words.
        differences: What else differs, in words: the machine, the model's files, versions.
        threshold: Share that is too small to matter.

    Examples:
        >>> from stepfuse.benchmarking import BenchResult, Case, Configuration, compare
        >>> def result(*seconds):
        ...     return BenchResult("my-model", {}, [Case(Configuration("onnxruntime"), 1, 0, 1, seconds)], {})
        >>> found = compare(result(0.1, 0.101, 0.1), result(0.1, 0.1, 0.101), threshold=0.1)
        >>> len(found.slower), len(found.undecided), found.missing
        (0, 0, [])
    """

    cases: Sequence[Comparison]
    missing: Sequence[str]
    differences: Sequence[str]
    threshold: float

    @property
    def slower(self) -> list[Comparison]:
        """Regressions."""
        return [one for one in self.cases if one.verdict == "slower"]

    @property
    def undecided(self) -> list[Comparison]:
        """Cases of which the times do not say whether they became slower by more than the threshold."""
        return [one for one in self.cases if one.verdict in ("unclear", "noisy") and not _surely_no_slower(one)]


def compare(new: BenchResult, old: BenchResult, *, threshold: float = 0.05) -> Compared:
    """Compares what two results have in common.

    The intervals say what the rounds of these two runs say. Two processes may differ by more, in where their memory
    lies for one: a regression that matters is there again in a second run.

    Args:
        new: A result.
        old: What it is compared with.
        threshold: Share by which a median has to differ to count, at least 0.

    Raises:
        ValueError: If the threshold is negative or not finite, or they have no case in common.

    Examples:
        >>> from stepfuse.benchmarking import BenchResult, Case, Configuration, compare
        >>> now = BenchResult("my-model", {}, [Case(Configuration("onnxruntime"), 1, 0, 1, [0.1, 0.1, 0.101])], {})
        >>> now.save("before.json")
        >>> compare(now, BenchResult.load("before.json")).cases[0].verdict
        'same'
    """
    threshold = float(number("threshold", threshold))
    if not 0 <= threshold < float("inf"):
        raise ValueError(f"threshold must be at least 0 and finite, got {threshold}")
    others = {_key(case): case for case in old.cases}
    both = [(case, others[_key(case)]) for case in new.cases if _key(case) in others]
    if not both:
        raise ValueError(
            "a comparison needs a case that both results have: a back end, precision, threads, rows, steps"
        )
    shared = {_key(case) for case, _ in both}
    missing = [
        f"{_words(case)} is missing in the {where} result"
        for where, result in (("old", new), ("new", old))
        for case in result.cases
        if _key(case) not in shared
    ]
    cases = [_compare(case, other, threshold) for case, other in both]
    return Compared(cases, missing, _differences(new, old), threshold)


def _compare(case: Case, other: Case, threshold: float) -> Comparison:
    low, high = ratio_interval(case.seconds, other.seconds)
    return Comparison(case, case.median / other.median, low, high, _verdict(case, other, low, high, threshold))


def _verdict(case: Case, other: Case, low: float, high: float, threshold: float) -> Verdict:
    if case.noisy or other.noisy:
        return "noisy"
    if low > 1 + threshold:
        return "slower"
    if high < 1 / (1 + threshold):
        return "faster"
    return "same" if low >= 1 / (1 + threshold) and high <= 1 + threshold else "unclear"


def _surely_no_slower(one: Comparison) -> bool:
    """Whether it is unclear only how much faster it became."""
    return one.verdict == "unclear" and one.high <= 1


def _differences(new: BenchResult, old: BenchResult) -> list[str]:
    found = []
    if new.model != old.model:
        found.append(f"the model is {new.model}, was {old.model}")
    elif new.files != old.files:
        found.append("the network's files have other contents")
    for name in ("machine", "versions", "quick", "sampler"):
        now, then = new.facts.get(name), old.facts.get(name)
        if isinstance(now, dict) and isinstance(then, dict):
            found += [
                f"{key} is {now.get(key) or 'missing'}, was {then.get(key) or 'missing'}"
                for key in sorted({*now, *then})
                if now.get(key) != then.get(key)
            ]
        elif now != then:
            found.append(f"{name} is {now}, was {then}")
    return found


def _key(case: Case) -> tuple[object, ...]:
    return case.configuration, case.rows, case.steps


def _words(case: Case) -> str:
    what = f"{case.steps} steps" if case.steps else "a forward"
    return f"{case.configuration}, {what} of {case.rows} row{'' if case.rows == 1 else 's'}"
