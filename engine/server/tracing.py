"""The W3C trace context of a request: its span becomes the parent of those of its pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def parent_of(headers: Mapping[str, str]) -> Iterator[None]:
    """Has the spans within be children of the one that ``traceparent`` names.

    Nothing is done where the application has not imported OpenTelemetry, or has a span of its own already.
    """
    if "traceparent" not in headers or "opentelemetry.trace" not in sys.modules:
        yield
        return
    from opentelemetry import context, trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if trace.get_current_span().get_span_context().is_valid:
        yield
        return
    token = context.attach(TraceContextTextMapPropagator().extract(dict(headers)))
    try:
        yield
    finally:
        context.detach(token)
