"""The text that Prometheus scrapes, against the engine's own counters and against what was sampled."""

import itertools
import math
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping

import numpy as np
import pytest
import support
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics_exposition
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

import stepfuse as sf
from stepfuse.serving.metrics import EngineCollector, serve_metrics

TIMEOUT = 60  # seconds: nothing here takes one; a hang must end
SPOILED, RAISING = 3, 5  # classes that the network of these tests fails on
HISTOGRAMS = {
    "stepfuse_queue_wait_seconds": "wait_seconds",
    "stepfuse_request_latency_seconds": "latency_seconds",
    "stepfuse_forward_seconds": "forward_seconds",
    "stepfuse_forward_rows": "forward_rows",
}


class Network:
    """Waits in its first call until it is opened, so that requests pile up behind it; fails on two classes."""

    def __init__(self):
        self.entered, self.opened, self.calls = threading.Event(), threading.Event(), []

    def __call__(self, x, t, cond):
        self.calls.append(len(x))
        self.entered.set()
        assert self.opened.wait(TIMEOUT)
        if RAISING in cond["class_labels"]:
            raise ArithmeticError("no such class")
        prediction = support.rowwise(x, t, cond)
        prediction[cond["class_labels"] == SPOILED] = np.nan
        return prediction


@pytest.fixture(scope="module")
def eventful():
    """A closed engine on which all that is counted has happened, and the sizes of its network's calls."""
    network = Network()
    engine = support.make_engine(network, max_rows=6)  # room for the failing and the fine
    deadline = time.monotonic() + 0.5
    late = engine.submit(sf.Request(steps=1, seed=0, deadline=deadline))
    assert network.entered.wait(TIMEOUT)
    failing = [engine.submit(sf.Request(cond=i, steps=2, seed=i)) for i in (SPOILED, RAISING)]
    fine = [engine.submit(sf.Request(cond=i, steps=2, guidance_scale=2.0, seed=i)) for i in (1, 2)]
    cancelled = engine.submit(sf.Request(cond=0, steps=2, seed=0))
    expiring = [engine.submit(sf.Request(cond=0, steps=2, seed=i, timeout=0.001)) for i in range(3)]
    cancelled.cancel()
    time.sleep(max(0.0, deadline - time.monotonic()) + 0.01)
    network.opened.set()
    engine.close()
    assert all(future.exception(TIMEOUT) is None for future in [late, *fine])
    assert all(future.exception(TIMEOUT) is not None for future in [*failing, *expiring])
    return engine, network.calls


def scrape(*collectors):
    """The text that Prometheus would be given."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    return generate_latest(registry).decode()


def series(text):
    """The value of each series, by its name and labels."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {(sample.name, *sorted(sample.labels.items())): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


def buckets(found, name):
    """Bounds and cumulative counts of one histogram."""
    ours = [(float(dict(key[1:])["le"]), value) for key, value in found.items() if key[0] == f"{name}_bucket"]
    return zip(*sorted(ours), strict=True)


def test_the_text_says_what_happened(eventful):
    engine, calls = eventful
    found = series(scrape(EngineCollector(engine)))
    outcomes = {dict(key[1:])["outcome"]: value for key, value in found.items() if key[0] == "stepfuse_requests_total"}
    assert outcomes == {"finished": 3, "failed": 2, "cancelled": 1, "expired": 3}
    assert found["stepfuse_requests_submitted_total",] == 9
    assert found["stepfuse_deadline_misses_total",] == 1
    assert found["stepfuse_requests_waiting",] == found["stepfuse_requests_running",] == 0
    assert found["stepfuse_forwards_total",] == found["stepfuse_forward_rows_count",] == len(calls)
    assert found["stepfuse_forward_failures_total",] == 2  # together, then alone
    assert found["stepfuse_network_passes_total",] == found["stepfuse_forward_rows_sum",] == sum(calls)
    assert found["stepfuse_steps_total",] == 1 + 2 * 2
    assert found["stepfuse_queue_wait_seconds_count",] == 5  # those that began
    assert found["stepfuse_request_latency_seconds_count",] == 3


def test_the_text_agrees_with_stats(eventful):
    engine, _ = eventful
    stats, found = engine.stats(), series(scrape(EngineCollector(engine)))
    expected = {
        ("stepfuse_requests_submitted_total",): stats["submitted"],
        ("stepfuse_requests_total", ("outcome", "finished")): stats["samples"],
        ("stepfuse_requests_total", ("outcome", "failed")): stats["failures"],
        ("stepfuse_requests_total", ("outcome", "cancelled")): stats["cancelled"],
        ("stepfuse_requests_total", ("outcome", "expired")): stats["expired"],
        ("stepfuse_requests_refused_total", ("reason", "queue")): stats["queue_refusals"],
        ("stepfuse_requests_refused_total", ("reason", "deadline")): stats["deadline_refusals"],
        ("stepfuse_deadline_misses_total",): stats["deadline_misses"],
        ("stepfuse_steps_total",): stats["steps"],
        ("stepfuse_forwards_total",): stats["forwards"],
        ("stepfuse_forward_failures_total",): stats["failed_forwards"],
        ("stepfuse_network_passes_total",): stats["network_passes"],
        ("stepfuse_padded_rows_total",): stats["padded_rows"],
        ("stepfuse_busy_seconds_total", ("phase", "network")): stats["network_seconds"],
        ("stepfuse_busy_seconds_total", ("phase", "step")): stats["step_seconds"],
        ("stepfuse_busy_seconds_total", ("phase", "loop")): stats["loop_seconds"],
        ("stepfuse_busy_seconds_total", ("phase", "callbacks")): stats["callback_seconds"],
        ("stepfuse_requests_waiting",): stats["waiting"],
        ("stepfuse_requests_running",): stats["running"],
    }
    shown = {key: value for key, value in found.items() if not key[0].startswith(tuple(HISTOGRAMS))}
    assert shown == expected
    scalars = {name for name, value in stats.items() if not isinstance(value, Mapping)}
    assert len(scalars) == len(expected), "a counter of stats() is missing from the metrics, or from this test"
    assert set(stats) - scalars == set(HISTOGRAMS.values())


@pytest.mark.parametrize(("name", "key"), HISTOGRAMS.items())
def test_histograms_are_cumulative(eventful, name, key):
    engine, _ = eventful
    histogram, found = engine.stats()[key], series(scrape(EngineCollector(engine)))
    bounds, counts = buckets(found, name)
    assert bounds == (*histogram["bounds"], math.inf)
    np.testing.assert_array_equal(np.diff(counts, prepend=0), histogram["counts"])
    assert found[f"{name}_count",] == counts[-1] == sum(histogram["counts"]) > 0
    assert found[f"{name}_sum",] == histogram["sum"]


def test_values_lie_in_their_buckets():
    rows = [1, 2, 3, 8]
    with support.make_engine(max_rows=8, deterministic=True) as engine:
        for n in rows:
            engine.sample(n, steps=2, seed=0)
        found = series(scrape(EngineCollector(engine)))
    bounds, counts = buckets(found, "stepfuse_forward_rows")
    assert counts == tuple(2 * sum(n <= bound for n in rows) for bound in bounds)
    assert found["stepfuse_forward_rows_sum",] == 2 * sum(rows)
    assert found["stepfuse_padded_rows_total",] == 2 * sum(8 - n for n in rows)
    for name in ("stepfuse_queue_wait_seconds", "stepfuse_request_latency_seconds", "stepfuse_forward_seconds"):
        bounds, counts = buckets(found, name)
        finite = np.array([*bounds[:-1], math.nan])  # nothing here takes longer than the last finite bound
        each = np.diff(counts, prepend=0)
        used = each > 0
        most = (each[used] * finite[used]).sum()
        assert found[f"{name}_sum",] <= most
        assert found[f"{name}_sum",] > (most - each[0] * finite[0]) / 2  # bounds double


def test_the_engine_can_be_scraped_while_it_draws():
    with support.make_engine(max_rows=4) as engine:
        collector, done, scraped = EngineCollector(engine), threading.Event(), []

        def scrape_on():
            while not done.is_set():
                scraped.append(series(scrape(collector)))

        thread = threading.Thread(target=scrape_on)
        thread.start()
        futures = [engine.submit(sf.Request(cond=i % 7, steps=1 + i % 5, seed=i)) for i in range(200)]
        for future in futures[::3]:
            future.cancel()
        for future in futures:
            if not future.cancelled():
                future.result(TIMEOUT)
        while len(scraped) < 3:
            time.sleep(0.001)
        done.set()
        thread.join(TIMEOUT)
    for before, after in itertools.pairwise(scraped):
        gauges = {"stepfuse_requests_waiting", "stepfuse_requests_running"}
        assert all(after[key] >= value for key, value in before.items() if key[0] not in gauges)
    for found in scraped:
        ended = sum(value for key, value in found.items() if key[0] == "stepfuse_requests_total")
        held = found["stepfuse_requests_waiting",] + found["stepfuse_requests_running",]
        assert found["stepfuse_requests_submitted_total",] == ended + held
        assert found["stepfuse_forwards_total",] == found["stepfuse_forward_seconds_count",]


def test_a_gauge_counts_what_waits():
    network = Network()
    with support.make_engine(network) as engine:
        engine.submit(sf.Request(steps=1, seed=0))
        assert network.entered.wait(TIMEOUT)
        for i in range(4):
            engine.submit(sf.Request(steps=1, seed=i))
        found = series(scrape(EngineCollector(engine)))
        assert found["stepfuse_requests_waiting",] == 4
        assert found["stepfuse_requests_running",] == 1
        network.opened.set()


def test_engines_are_told_apart_by_labels():
    with support.make_engine() as one, support.make_engine() as other:
        one.sample(1, steps=2)
        other.sample(3, steps=2)
        collector = EngineCollector(one, {"model": "one", "replica": "0"})
        collector.add(other, {"replica": "1", "model": 'the "other"\\\n'})
        text = scrape(collector)
        found = series(text)
    assert found["stepfuse_requests_submitted_total", ("model", "one"), ("replica", "0")] == 1
    assert found["stepfuse_requests_submitted_total", ("model", 'the "other"\\\n'), ("replica", "1")] == 3
    assert (
        found["stepfuse_requests_total", ("model", 'the "other"\\\n'), ("outcome", "finished"), ("replica", "1")] == 3
    )
    headings = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(headings) == len(set(headings))


def test_a_second_collector_is_refused_by_the_registry():
    with support.make_engine() as engine, pytest.raises(ValueError, match="Duplicated timeseries"):
        scrape(EngineCollector(engine, {"model": "one"}), EngineCollector(engine, {"model": "other"}))


def test_registering_reads_no_counters():
    def stats():
        raise AssertionError("read before the first scrape")

    CollectorRegistry().register(EngineCollector(stats))


def test_openmetrics_text_is_valid(eventful):
    engine, _ = eventful
    registry = CollectorRegistry()
    registry.register(EngineCollector(engine, {"model": "tiny"}))
    text = openmetrics_exposition.generate_latest(registry).decode()
    assert len(list(openmetrics_parser.text_string_to_metric_families(text))) == 16


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        pytest.param({"le": "x"}, ValueError, "got 'le'", id="histogram"),
        pytest.param({"outcome": "x"}, ValueError, "got 'outcome'", id="ours"),
        pytest.param({"0model": "x"}, ValueError, "got '0model'", id="digit"),
        pytest.param({"__model": "x"}, ValueError, "got '__model'", id="prometheus"),
        pytest.param({"model": 1}, TypeError, "got 'model': 1", id="number"),
    ],
)
def test_bad_labels_are_refused(labels, error, message):
    with pytest.raises(error, match=message):
        EngineCollector(dict, labels)


def test_labels_that_do_not_tell_engines_apart_are_refused():
    collector = EngineCollector(dict, {"model": "one"})
    with pytest.raises(ValueError, match=r"\{'model': 'one'\} is taken"):
        collector.add(dict, {"model": "one"})
    with pytest.raises(ValueError, match="labels of the same names"):
        collector.add(dict, {"name": "other"})
    with pytest.raises(TypeError, match="engine must be an Engine"):
        collector.add("fashion", {"model": "other"})


def test_metrics_are_served_over_http(eventful):
    engine, _ = eventful
    server, thread = serve_metrics(engine, 0)
    try:
        host, port = server.server_address[:2]
        assert host == "127.0.0.1"
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=TIMEOUT) as reply:
            text = reply.read().decode()
        assert series(text) == series(scrape(EngineCollector(engine)))
        with urllib.request.urlopen(f"http://{host}:{port}/?name[]=stepfuse_steps_total", timeout=TIMEOUT) as reply:
            assert list(series(reply.read().decode())) == [("stepfuse_steps_total",)]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(TIMEOUT)
    assert not thread.is_alive()


def test_servers_share_nothing():
    with support.make_engine() as one, support.make_engine() as other:
        one.sample(2, steps=1)
        servers = [serve_metrics(one, 0), serve_metrics(EngineCollector(other, {"model": "other"}), 0)]
        found = []
        for server, thread in servers:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/", timeout=TIMEOUT) as reply:
                found.append(series(reply.read().decode()))
            server.shutdown()
            server.server_close()
            thread.join(TIMEOUT)
    assert found[0]["stepfuse_requests_submitted_total",] == 2
    assert found[1]["stepfuse_requests_submitted_total", ("model", "other")] == 0


@pytest.mark.parametrize("use", [EngineCollector, lambda engine: serve_metrics(engine, 0)], ids=["collect", "serve"])
def test_the_extra_is_named_where_it_is_missing(monkeypatch, use):
    for module in [name for name in sys.modules if name.split(".")[0] == "prometheus_client"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install '\S+\[metrics\]'"):
        use(dict)
