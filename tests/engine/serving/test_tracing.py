"""OpenTelemetry spans: one a request, a child of its caller's, as long as it took; none if nothing else is traced."""

import asyncio
import logging
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import support
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode

import stepfuse as sf

TIMEOUT = 60  # seconds: nothing here takes one; a hang must end
MILLISECOND = 1_000_000  # in a span's nanoseconds


@pytest.fixture
def trace_with(monkeypatch):
    """Makes a provider the application's for the length of a test; OpenTelemetry's own setter allows one a process."""

    def use(provider):
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
        return provider.get_tracer("application")

    return use


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter, trace_with):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return trace_with(provider)


@pytest.fixture
def engine():
    with support.make_engine() as engine:
        yield engine


def draws(exporter):
    return [span for span in exporter.get_finished_spans() if span.name == "stepfuse.draw"]


def test_a_request_is_a_span(engine, tracer, exporter):
    engine.submit(sf.Request(sampler="dpmpp_2m", steps=5, cond="bag", seed=1, id="order 7")).result(TIMEOUT)
    [span] = draws(exporter)
    waited = span.attributes["stepfuse.wait_seconds"]
    assert dict(span.attributes) == {
        "stepfuse.request_id": "order 7",
        "stepfuse.sampler": "dpmpp_2m",
        "stepfuse.steps": 5,
        "stepfuse.outcome": "finished",
        "stepfuse.wait_seconds": waited,
    }
    assert 0 <= waited <= (span.end_time - span.start_time) / 1e9
    assert span.parent is None
    assert span.status.status_code is StatusCode.UNSET
    assert span.instrumentation_scope.name == "stepfuse"


def submit(engine):
    engine.submit(sf.Request(steps=2, seed=0)).result(TIMEOUT)


def stream(engine):
    list(engine.stream(sf.Request(steps=2, seed=0)))


@pytest.mark.parametrize(
    ("draw", "n"),
    [
        pytest.param(submit, 1, id="submit"),
        pytest.param(stream, 1, id="stream"),
        pytest.param(lambda engine: engine.sample(3, steps=2), 3, id="sample"),
        pytest.param(lambda engine: asyncio.run(engine.asample(steps=2)), 1, id="asample"),
    ],
)
def test_its_parent_is_the_caller_s_span(engine, tracer, exporter, draw, n):
    with tracer.start_as_current_span("request of a user") as caller:
        draw(engine)
    spans = draws(exporter)
    assert len(spans) == n
    for span in spans:
        assert span.parent.span_id == caller.get_span_context().span_id
        assert span.context.trace_id == caller.get_span_context().trace_id
        assert caller.start_time - MILLISECOND <= span.start_time <= span.end_time <= caller.end_time + MILLISECOND


def test_callers_are_told_apart(engine, tracer, exporter):
    futures = {}
    for i in range(6):
        with tracer.start_as_current_span("caller") as caller:
            futures[str(i)] = caller, engine.submit(sf.Request(steps=2 + i, seed=i, id=str(i)))
    for _, future in futures.values():
        future.result(TIMEOUT)
    for span in draws(exporter):
        caller, _ = futures.pop(span.attributes["stepfuse.request_id"])
        assert span.parent.span_id == caller.get_span_context().span_id
    assert not futures


def test_it_lasts_from_submission_to_the_image(tracer, exporter, caplog):
    def slow(x, t, cond):
        time.sleep(0.02)
        return support.rowwise(x, t, cond)

    with support.make_engine(slow, max_rows=1) as engine, caplog.at_level(logging.DEBUG, "stepfuse"):
        before = time.time_ns()
        futures = [engine.submit(sf.Request(steps=3, seed=i, id=str(i))) for i in range(2)]
        for future in futures:
            future.result(TIMEOUT)
        after = time.time_ns()
    logged = {record.request_id: record for record in caplog.records}
    spans = {span.attributes["stepfuse.request_id"]: span for span in draws(exporter)}
    assert spans.keys() == {"0", "1"}
    for id, span in spans.items():
        record, length = logged[id], span.end_time - span.start_time
        assert span.attributes["stepfuse.wait_seconds"] == record.wait_seconds
        assert abs(length - 1e9 * (record.wait_seconds + record.run_seconds)) < MILLISECOND
        assert length >= 3 * 20 * MILLISECOND
        assert before - MILLISECOND <= span.start_time < span.end_time <= after
    assert spans["1"].attributes["stepfuse.wait_seconds"] >= 0.02  # behind the other's steps


def test_a_failed_request_is_an_error(tracer, exporter):
    def spoiled(x, t, cond):
        prediction = support.rowwise(x, t, cond)
        prediction[cond["class_labels"] == 3] = np.nan
        return prediction

    with support.make_engine(spoiled) as engine:
        errors = [engine.submit(sf.Request(cond=i, steps=3, seed=i, id=str(i))).exception(TIMEOUT) for i in (2, 3)]
    fine, failed = sorted(draws(exporter), key=lambda span: span.attributes["stepfuse.request_id"])
    assert errors[0] is None
    assert fine.status.status_code is StatusCode.UNSET
    assert not fine.events
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.status.description == str(errors[1])
    assert failed.attributes["stepfuse.outcome"] == "failed"
    [event] = failed.events
    assert event.attributes["exception.message"] == str(errors[1])
    assert event.attributes["exception.type"].endswith("DenoiserError")
    assert failed.start_time <= event.timestamp <= failed.end_time


def test_a_cancelled_request_is_no_error(tracer, exporter):
    begun, withdrawn = threading.Event(), threading.Event()

    def network(x, t, cond):
        begun.set()
        assert withdrawn.wait(TIMEOUT)
        return support.rowwise(x, t, cond)

    with support.make_engine(network) as engine:
        future = engine.submit(sf.Request(steps=2, seed=0))
        assert begun.wait(TIMEOUT)
        future.cancel()
        withdrawn.set()
    [span] = draws(exporter)
    assert span.attributes["stepfuse.outcome"] == "cancelled"
    assert span.status.status_code is StatusCode.UNSET
    assert not span.events


def test_a_sampler_may_drop_spans(engine, trace_with, exporter):
    provider = TracerProvider(sampler=ALWAYS_OFF)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace_with(provider)
    assert engine.sample(2, steps=2).shape == (2, *support.SHAPE)
    assert not draws(exporter)


def test_the_api_alone_records_nothing(engine, trace_with):
    trace_with(trace.NoOpTracerProvider())
    assert engine.sample(2, steps=2).shape == (2, *support.SHAPE)


@pytest.mark.parametrize("moment", ["on_start", "on_end"])
def test_a_faulty_processor_harms_no_request(engine, trace_with, caplog, moment):
    def fail(self, *arguments, **more):
        raise ConnectionError("no collector")

    provider = TracerProvider()
    provider.add_span_processor(type("Faulty", (SpanProcessor,), {moment: fail})())
    trace_with(provider)
    images = [engine.submit(sf.Request(steps=2, seed=1, id="order 7")).result(TIMEOUT) for _ in range(2)]
    np.testing.assert_array_equal(*images)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage() for record in warnings] == 2 * ["request order 7 could not be traced"]
    assert all(record.request_id == "order 7" for record in warnings)


CODE = """
import stepfuse as sf
engine = sf.Engine.from_callable(lambda x, t, cond: x, shape=(2,), schedule=sf.NoiseSchedule.linear())
print(engine.sample(2, steps=3).shape, *engine.submit(sf.Request(steps=3)).result().shape)
"""


@pytest.mark.parametrize(
    "missing",
    [
        pytest.param("", id="installed, never imported"),
        pytest.param("sys.modules['opentelemetry'] = None", id="not installed"),
        pytest.param("sys.modules.update({'opentelemetry': None, 'opentelemetry.trace': None})", id="broken"),
    ],
)
def test_nothing_happens_without_the_api(missing):
    code = (
        f"import sys\n{missing}\n{CODE}\nprint(*(name for name, m in sys.modules.items() if 'opentel' in name and m))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "(2, 2) 2\n\n"
    assert done.stderr == ""


def test_a_provider_set_after_the_engine_was_made_is_used():
    code = f"""{CODE}
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
engine.sample(1, steps=3)
trace.set_tracer_provider(provider)
engine.sample(2, steps=4)
print(*(span.attributes["stepfuse.steps"] for span in exporter.get_finished_spans()))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "(2, 2) 2\n4 4\n"
