"""The service around the pictures: probes, metrics, keys, ids, refusals, clients that go away, and how it ends."""

import base64
import logging
import subprocess
import sys
import threading
from dataclasses import replace

import http_service
import pytest
import support
from http_service import GENERATIONS, until
from prometheus_client.parser import text_string_to_metric_families

import stepfuse as sf

pytest.importorskip("fastapi", reason="needs the extra serve")

from stepfuse.server import ClassModel, create_app


class Network:
    """Waits in each call until it is opened."""

    def __init__(self):
        self.opened = threading.Event()

    def __call__(self, x, t, cond):
        assert self.opened.wait(http_service.TIMEOUT)
        return support.rowwise(x, t, cond)


@pytest.fixture
def network():
    network = Network()
    yield network
    network.opened.set()


@pytest.fixture
def engine(network):
    serving = sf.Serving(max_rows=1, max_running=1, max_queue=1)
    with support.make_engine(network, serving=serving) as engine:
        yield engine
        network.opened.set()


@pytest.fixture
def service(engine):
    with http_service.served(create_app({"rows": engine}, warm_up=False)) as service:
        yield service


@pytest.fixture(scope="module")
def quick():
    """A service that needs a key and knows an origin, over an engine that is never closed to it."""
    with support.make_engine() as engine:
        options = {"api_keys": ["first", "second"], "cors_origins": ["https://example.com"]}
        with http_service.served(create_app({"rows": engine, "same": engine}, **options)) as service:
            yield service


KEY = {"Authorization": "Bearer second"}


class Begun:
    """A request whose answer is read later, or never."""

    def __init__(self, service, **fields):
        self.connection = service.connect()
        service.begin(self.connection, "POST", GENERATIONS, {"prompt": "boot", "steps": 3, **fields})

    def leave(self):
        self.connection.close()

    @property
    def status(self):
        return self.connection.getresponse().status


def test_a_client_that_goes_away_withdraws_its_request(service, engine, network):
    for fields in ({}, {"stream": True}, {"stream": True, "partial_images": 3}):
        before = engine.stats()["cancelled"]
        begun = Begun(service, steps=50, **fields)
        until(lambda: engine.stats()["running"] == 1)
        begun.leave()
        until(lambda: service.app.state.lifecycle.running == 0)
        network.opened.set()
        until(lambda before=before: engine.stats()["cancelled"] == before + 1)
        assert engine.stats()["running"] == 0
        network.opened.clear()


def test_a_full_queue_is_answered_with_when_to_come_again(service, engine, network):
    begun = []
    for count in ("running", "waiting"):
        begun.append(Begun(service))
        until(lambda count=count: engine.stats()[count] == 1)
    answer = service.generate("bag")
    assert (answer.status, answer.error["type"], answer.error["code"]) == (429, "rate_limit_error", "queue_full")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    several = service.generate("bag", n=2)
    assert several.status == 429
    network.opened.set()
    assert [one.status for one in begun] == [200, 200]


def test_a_deadline_that_cannot_be_met_is_refused_by_the_cost(network, engine):
    model = ClassModel("rows", engine)
    network.opened.set()
    app = create_app({"rows": model}, calibrate={"rows": sf.CostCurve(0.5, 0.5)})
    with http_service.served(app) as service:
        until(lambda: service.ask("GET", "/ready").status == 200)
        network.opened.clear()
        begun = Begun(service, steps=20)
        until(lambda: engine.stats()["running"] == 1)
        answer = service.generate("bag", steps=10, deadline_ms=2000)
        assert (answer.status, answer.error["code"], answer.error["param"]) == (429, "deadline", "deadline_ms")
        # One image of an unknown number of passes is in flight: the wait is by the model's default steps.
        assert answer.headers["retry-after"] == str(model.retry_after())
        assert service.generate("bag", steps=10, deadline_ms=1).error["code"] == "deadline"
        network.opened.set()
        assert begun.status == 200
    # 20 passes of 1 s each have been counted for the one image finished.
    assert model.retry_after() == 1


@pytest.mark.parametrize(
    ("cost", "counted", "seconds"),
    [
        (sf.CostCurve(0.5, 0.125), {"samples": 10}, 10),  # 4 images of 10 passes, each 1/8 s and a quarter of 1/2 s
        (None, {"samples": 10}, 8),  # each 0.2 s, as the forwards so far
        (None, {"samples": 0, "network_passes": 0}, 2),  # before the first: 4 images of 5 steps, 0.1 s a pass
        (sf.CostCurve(0.5, 0.125), {"samples": 10, "waiting": 0, "running": 0}, 1),
        (sf.CostCurve(0.5, 0.125), {"samples": 10, "waiting": 1000}, 60),
    ],
)
def test_when_to_come_again_is_when_what_waits_is_drawn(cost, counted, seconds, monkeypatch):
    stats = {"waiting": 3, "running": 1, "network_passes": 100, "network_seconds": 20.0, **counted}
    with support.make_engine(max_rows=4) as engine:
        model = ClassModel("rows", engine)
        model.cost = cost
        monkeypatch.setattr(model, "stats", lambda: stats)
        monkeypatch.setattr(model, "info", replace(model.info, defaults={"steps": 5}))
        assert model.retry_after() == seconds


def test_probes_tell_alive_from_ready(network, engine):
    with http_service.served(create_app({"rows": engine})) as service:
        assert (service.ask("GET", "/health").status, service.ask("GET", "/ready").status) == (200, 503)
        assert service.ask("GET", "/ready").json == {"status": "warming up"}
        network.opened.set()
        until(lambda: service.ask("GET", "/ready").status == 200)


def test_what_drains_ends_what_it_has_and_takes_no_more(service, engine, network):
    begun = Begun(service)
    until(lambda: engine.stats()["running"] == 1)
    lifecycle = service.app.state.lifecycle
    lifecycle.drain()
    answer = service.generate("bag")
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "draining", "1")
    assert service.ask("GET", "/ready").json == {"status": "draining"}
    assert service.ask("GET", "/health").status == 200
    assert lifecycle.running == 1
    network.opened.set()
    assert begun.status == 200
    until(lambda: lifecycle.running == 0)


def test_a_closed_engine_is_no_fault_of_the_client(service, engine, network):
    network.opened.set()
    engine.close()
    answer = service.generate("bag")
    assert (answer.status, answer.error["code"]) == (503, "closed")


def test_a_network_that_fails_is_an_error_of_the_service(caplog):
    def fails(x, t, cond):
        raise RuntimeError("no such file: /secret/place")

    with support.make_engine(fails) as engine:
        app = create_app({"rows": engine}, warm_up=False)
        with http_service.served(app) as service:
            answer = service.generate("bag")
    assert (answer.status, answer.error["type"]) == (500, "server_error")
    assert "secret" not in answer.error["message"]  # of the log alone
    assert "/secret/place" in caplog.text


@pytest.mark.parametrize(
    "given", [None, "Bearer third", "Bearer", "second", "Basic second", "Basic eDp5", "Bearer firs", "Bearer \xe9"]
)
def test_a_wrong_key_is_refused_by_all_but_health(quick, given):
    headers = {} if given is None else {"Authorization": given}
    for method, path in (("GET", "/v1/models"), ("POST", GENERATIONS), ("GET", "/metrics"), ("GET", "/openapi.json")):
        answer = quick.ask(method, path, **headers)
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert quick.ask("GET", "/health", **headers).status == 200


@pytest.mark.parametrize("key", ["first", "second"])
def test_every_key_is_taken(quick, key):
    assert quick.ask("GET", "/v1/models", Authorization=f"Bearer {key}").status == 200
    password = base64.b64encode(f"anyone:{key}".encode()).decode()
    assert quick.ask("GET", "/sdapi/v1/samplers", Authorization=f"Basic {password}").status == 200


@pytest.mark.parametrize("key", ["", " a", "a\n", "é"])
def test_a_key_that_no_header_can_hold_is_refused(key):
    with support.make_engine() as engine, pytest.raises(ValueError, match="an API key must be of printable ASCII"):
        create_app({"rows": engine}, api_keys=[key])


def test_one_text_is_no_list_of_keys_or_origins():
    with support.make_engine() as engine:
        with pytest.raises(TypeError, match="api_keys must be a list of keys, got one text"):
            create_app({"rows": engine}, api_keys="sesame")
        with pytest.raises(TypeError, match="cors_origins must be a list of origins"):
            create_app({"rows": engine}, cors_origins="https://example.com")


def test_metrics_are_the_engines_and_those_of_http(quick):
    quick.ask("POST", GENERATIONS, {"prompt": "bag", "steps": 2}, **KEY)
    text = quick.ask("GET", "/metrics", **KEY).body.decode()
    families = {one.name: one.samples for one in text_string_to_metric_families(text)}
    assert {sample.labels["model"] for sample in families["stepfuse_steps"]} == {"rows", "same"}
    totals = [one for one in families["stepfuse_http_requests"] if one.name.endswith("_total")]
    answered = {tuple(one.labels.values()): one.value for one in totals}
    assert answered["POST", GENERATIONS, "200"] >= 1
    [in_flight] = families["stepfuse_http_requests_in_flight"]
    assert in_flight.value == 1  # this one
    assert "stepfuse_http_first_byte_seconds" in families


def test_an_id_goes_through_to_the_log_of_the_engine(quick, caplog):
    caplog.set_level(logging.DEBUG, "stepfuse")
    answer = quick.ask("POST", GENERATIONS, {"prompt": "bag", "steps": 2, "user": "ann"}, X_Request_ID="a/b-1", **KEY)
    assert answer.headers["x-request-id"] == "a/b-1"
    until(lambda: any(one.name == "stepfuse.server.access" for one in caplog.records))
    [line] = [one for one in caplog.records if one.name == "stepfuse.server.access"]
    assert (line.request_id, line.status, line.path) == ("a/b-1", 200, GENERATIONS)
    assert (line.user, line.model) == ("ann", "rows")
    assert line.seconds > 0
    assert line.bytes == len(answer.body)
    assert [one.request_id for one in caplog.records if one.name == "stepfuse" and hasattr(one, "outcome")] == ["a/b-1"]


def test_pages_of_known_origins_alone_may_ask(quick, service):
    known = quick.ask("GET", "/health", Origin="https://example.com")
    assert known.headers["access-control-allow-origin"] == "https://example.com"
    assert "access-control-allow-origin" not in quick.ask("GET", "/health", Origin="https://else.com").headers
    assert "access-control-allow-origin" not in service.ask("GET", "/health", Origin="https://example.com").headers


def test_a_trace_goes_on(quick, monkeypatch):
    trace = pytest.importorskip("opentelemetry.trace", reason="needs OpenTelemetry")
    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="needs OpenTelemetry's SDK")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    quick.ask("POST", GENERATIONS, {"prompt": "bag", "steps": 2}, traceparent=parent, **KEY)
    until(lambda: any(span.name == "stepfuse.draw" for span in exporter.get_finished_spans()))
    [drawn] = [span for span in exporter.get_finished_spans() if span.name == "stepfuse.draw"]
    assert f"{drawn.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert drawn.parent is not None  # the client's span, or that of the framework between them


def test_many_clients_at_once_are_all_answered(quick):
    statuses = []

    def ask(seed):
        statuses.append(quick.ask("POST", GENERATIONS, {"prompt": "bag", "steps": 3, "seed": seed}, **KEY).status)

    threads = [threading.Thread(target=ask, args=[seed]) for seed in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(http_service.TIMEOUT)
    assert statuses == [200] * 50


def test_the_service_is_an_extra():
    code = "import sys, stepfuse; assert not {'fastapi', 'pydantic', 'starlette', 'uvicorn'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
