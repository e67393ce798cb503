"""The HTTP service on Ray Serve, on a cluster of several nodes: under load, replicas and nodes come, go and die."""

import os
import signal
import socket
import threading
import time
import warnings
from contextlib import contextmanager

import http_service
import numpy as np
import pytest
from http_service import Service, as_levels, levels_of, until

import stepfuse as sf

pytest.importorskip("ray", reason="needs the extra ray")

from ray import serve
from ray.serve.context import _get_global_client

from stepfuse.integrations.ray import deployment

pytestmark = pytest.mark.slow

CLIENTS = 6
# Every forward has sixteen rows: bits that do not depend on neighbours, and requests that take a while.
SERVING = sf.Serving(max_rows=16, deterministic=True)
SHORT = {"steps": 8, "sampler": "ddim"}
LONG = {"steps": 60, "sampler": "ddim"}
LONGER = {"steps": 250, "sampler": "ddim"}


def run(**options):
    """Deploys the app, or the app with other options in its place."""
    quick = {"graceful_shutdown_wait_loop_s": 0.2, "health_check_period_s": 1.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of metrics_interval_s, for which there are environments
        serve.run(deployment(["fashion"], serving=SERVING, **quick, **options), name="shoes")


def replicas():
    """Those that run, by their ids."""
    applications = _get_global_client().get_serve_details()["applications"]
    found = applications["shoes"]["deployments"]["stepfuse"]["replicas"]
    return {one["replica_id"]: one for one in found if one["state"] == "RUNNING"}


@pytest.fixture(scope="module")
def service(cluster):
    """Two replicas on different nodes, behind the proxy of the head."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    serve.start(proxy_location="HeadOnly", http_options={"port": port}, logging_config={"log_level": "ERROR"})
    run(num_replicas=2, max_replicas_per_node=1)
    yield Service(port, None)
    serve.shutdown()


@pytest.fixture(scope="module")
def engine():
    with sf.Engine.load("fashion", serving=SERVING) as engine:
        yield engine


@pytest.fixture(scope="module")
def pictures(engine):
    """Those of seeds 0 to 5, in eight steps."""
    samples = engine.sample(CLIENTS, cond="bag", seed=list(range(CLIENTS)), **SHORT)
    return [as_levels(sample) for sample in samples]


@contextmanager
def load(service, pictures, clients=CLIENTS):
    """Clients that ask for one picture after the other: yields the statuses, and checks each picture."""
    statuses, wrong, stop = [], [], threading.Event()

    def ask(seed):
        while not stop.is_set():
            answer = service.generate("bag", seed=seed, **SHORT)
            if answer.status == 200:
                [one] = answer.json["data"]
                if one["drawn"]["seed"] != seed or not np.array_equal(levels_of(one["b64_json"]), pictures[seed]):
                    wrong.append(seed)
            statuses.append(answer.status)

    threads = [threading.Thread(target=ask, args=[seed]) for seed in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        stop.set()
        for thread in threads:
            thread.join(http_service.TIMEOUT)
    assert wrong == []


def more(statuses, number):
    """Waits for so many answers more."""
    enough = len(statuses) + number
    until(lambda: len(statuses) >= enough)


def test_images_are_those_of_the_engine_whatever_replica_draws_them(service, pictures):
    assert len({one["node_id"] for one in replicas().values()}) == 2
    with load(service, pictures) as statuses:
        more(statuses, 4 * CLIENTS)
    assert set(statuses) == {200}
    answer = service.generate("bag", n=2, seed=0, **SHORT)
    for one, levels in zip(answer.json["data"], pictures[:2], strict=True):
        np.testing.assert_array_equal(levels_of(one["b64_json"]), levels)


def test_an_id_is_said_once(service):
    answer = service.ask("POST", http_service.GENERATIONS, {"prompt": "bag", **SHORT}, X_Request_ID="a/b-1")
    assert (answer.headers["x-request-id"], answer.json["data"][0]["drawn"]["id"]) == ("a/b-1", "a/b-1")


def test_what_one_replica_has_is_refused(service):
    assert service.generate("bag", response_format="url").error["param"] == "response_format"
    assert service.ask("GET", "/metrics").status == service.ask("GET", "/sdapi/v1/progress").status == 404
    assert service.ask("GET", "/ready").status == 200
    assert b"stepfuse" in service.ask("GET", "/").body


def test_the_openai_client_generates_and_streams(service, engine, pictures):
    openai = pytest.importorskip("openai", reason="needs OpenAI's client")
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["fashion"]
    [one] = client.images.generate(model="fashion", prompt="bag", extra_body={**SHORT, "seed": 3}).data
    np.testing.assert_array_equal(levels_of(one.b64_json), pictures[3])
    came = []
    for event in client.images.generate(prompt="bag", stream=True, partial_images=3, extra_body={**LONG, "seed": 3}):
        came.append((event.type.rpartition(".")[2], time.monotonic()))
    assert [kind for kind, _ in came] == ["partial_image"] * 3 + ["completed"]
    assert came[-1][1] - came[0][1] > 0.1  # a preview is seen while the picture is drawn
    np.testing.assert_array_equal(levels_of(event.b64_json), as_levels(engine.sample(1, cond="bag", seed=3, **LONG)[0]))


def test_a_replica_that_is_killed_takes_its_requests_along_and_no_other(service, pictures):
    before = replicas()
    with load(service, pictures) as statuses:
        more(statuses, CLIENTS)
        os.kill(next(iter(before.values()))["pid"], signal.SIGKILL)
        until(lambda: len(replicas()) == 2 and replicas().keys() != before.keys())
        failed = statuses.count(500)
        more(statuses, 4 * CLIENTS)
    assert set(statuses) <= {200, 500}
    assert statuses.count(500) == failed <= CLIENTS


def test_a_node_that_is_killed_takes_its_requests_along_and_no_other(service, pictures, cluster):
    cluster.add_node(num_cpus=2, object_store_memory=100 << 20)
    until(lambda: len(replicas()) == 2)  # so that one of them is not on the head
    on_nodes = {one["node_id"]: id for id, one in replicas().items()}
    node = next(one for one in cluster.worker_nodes if one.node_id in on_nodes)
    with load(service, pictures) as statuses:
        more(statuses, CLIENTS)
        cluster.remove_node(node, allow_graceful=False)
        until(lambda: len(replicas()) == 2 and on_nodes[node.node_id] not in replicas())
        failed = statuses.count(500)
        more(statuses, 4 * CLIENTS)
    assert set(statuses) <= {200, 500}
    assert statuses.count(500) == failed <= CLIENTS


def test_replicas_come_with_the_load_and_go_when_their_requests_are_answered(service, engine, pictures):
    at_once = {"metrics_interval_s": 0.2, "look_back_period_s": 0.5, "upscale_delay_s": 0.2, "downscale_delay_s": 0.2}
    run(autoscaling_config={"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 3, **at_once})
    assert len(replicas()) == 1
    with load(service, pictures) as statuses:
        until(lambda: len(replicas()) == 2)
        more(statuses, CLIENTS)
    assert set(statuses) == {200}

    answers = []
    ask = [threading.Thread(target=lambda: answers.append(service.generate("bag", seed=9, **LONGER))) for _ in range(3)]
    for thread in ask:
        thread.start()
    until(lambda: len(replicas()) == 1)
    drained = not answers  # the other one is ending, and all of them are still drawn
    for thread in ask:
        thread.join(http_service.TIMEOUT)
    assert drained
    expected = as_levels(engine.sample(1, cond="bag", seed=9, **LONGER)[0])
    for answer in answers:
        assert answer.status == 200
        np.testing.assert_array_equal(levels_of(answer.json["data"][0]["b64_json"]), expected)
