"""Which request a pipeline encodes next, and when: a pure function of those that wait and those that are in flight."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Protocol, TypeVar

from stepfuse.pipeline.engines import Shape
from stepfuse.requests.terms import Terms
from stepfuse.serving.config import AGEING, Serving

#: A place in line: the least goes first.
Order = tuple[float, ...]


class Queued(Protocol):
    """A request."""

    @property
    def order(self) -> Order:
        """Its place in line."""

    @property
    def shape(self) -> Shape:
        """Of its sample."""


Job = TypeVar("Job", bound=Queued)


def order_of(serving: Serving, terms: Terms, *, passes: int, passes_before: Callable[[], int], number: int) -> Order:
    """A place in line by an engine's own policy, which requests keep to before they reach it, too.

    Args:
        serving: Whose policy it is.
        terms: The request's.
        passes: Network passes that it costs.
        passes_before: Those computed before its submission.
        number: How many were submitted before it.
    """
    by_policy = 0.0
    if serving.policy in AGEING:
        by_policy = passes + serving.ageing_rate * passes_before()
    elif serving.policy == "deadline":
        by_policy = math.inf if terms.deadline is None else terms.deadline
    return -terms.priority, by_policy, number


def next_to_encode(
    waiting: Collection[Job],
    in_flight: Collection[Job],
    most_running: Callable[[Shape], int],
    fits: Callable[[Shape, Collection[Shape]], bool],
) -> Job | None:
    """The request that is encoded next; None while it would only wait for the denoiser, and hold memory.

    The first in line alone is looked at, so that none is passed over for ever.

    Args:
        waiting: Those that are not encoded.
        in_flight: Those that are, up to their end.
        most_running: How many of this shape may be in flight; those behind the first in line do not count, since the
            denoiser prefers it.
        fits: Whether a shape may be in flight beside others: each takes an engine and its thread.
    """
    if not waiting:
        return None
    first = min(waiting, key=lambda one: one.order)
    shapes = {one.shape for one in in_flight}
    if first.shape not in shapes and shapes and not fits(first.shape, shapes):
        return None
    before = sum(one.shape == first.shape and one.order <= first.order for one in in_flight)
    return first if before < most_running(first.shape) else None
