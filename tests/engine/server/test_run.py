"""``stepfuse serve``: what it listens at, how it drains and gives up, and what it logs."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import http_service
import pytest
import support
from http_service import GENERATIONS, Service, until
from typer.testing import CliRunner

import stepfuse as sf
from stepfuse.cli import app as command_line

pytest.importorskip("fastapi", reason="needs the extra serve")

from stepfuse.server import create_app
from stepfuse.server.loading import costs_text, load_model, read_costs
from stepfuse.server.protocol import protocol_within
from stepfuse.server.run import serve

LONG = {"prompt": "bag", "steps": 250, "sampler": "ddim"}


@pytest.fixture(autouse=True)
def _own_logs(monkeypatch):
    """The logs of this process stay pytest's."""
    monkeypatch.setattr("stepfuse.server.logs.log_to_stderr", lambda format: None)


@contextmanager
def running(*arguments, **environment):
    """A process of the command, and its service once it says that it serves."""
    command = [Path(sys.executable).with_name("stepfuse"), "serve", *arguments, "--port", "0", "--threads", "1"]
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*map(str, command)], env={**os.environ, **environment}, **settings)
    try:
        line = process.stdout.readline()
        found = re.match(r"http://127\.0\.0\.1:(\d+) serves (.*)\n", line)
        assert found, process.communicate()[1]
        yield process, Service(int(found[1]), None), found[2]
    finally:
        process.kill()
        process.wait()


def begin(service, **headers):
    """A long request, once the engine has it."""
    connection = service.connect()
    service.begin(connection, "POST", GENERATIONS, LONG, **headers)
    until(lambda: b'stepfuse_requests_running{model="shoes"} 0.0' not in service.ask("GET", "/metrics", **headers).body)
    return connection


def test_a_signal_drains_the_process(tmp_path):
    (tmp_path / "key").write_text("sesame\n")
    key = {"Authorization": "Bearer sesame"}
    options = ("--api-key-file", tmp_path / "key", "--log-format", "json", "--grace", "600")
    with running("shoes=fashion", *options) as (process, service, names):
        assert names == "shoes"
        assert service.ask("GET", "/v1/models").status == 401
        with pytest.raises(OSError, match="refused"):  # of this machine's other addresses it knows nothing
            socket.create_connection(("127.0.0.2", service.port), timeout=5)
        begun = begin(service, **key)
        process.send_signal(signal.SIGTERM)
        until(lambda: service.ask("GET", "/ready").json == {"status": "draining"})
        answer = service.ask("POST", GENERATIONS, {"prompt": "bag"}, **key)
        assert (answer.status, answer.error["code"]) == (503, "draining")
        assert begun.getresponse().status == 200
        assert process.wait(http_service.TIMEOUT) == 0
        lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    served = next(line for line in lines if line.get("path") == GENERATIONS and line["status"] == 200)
    assert {"time", "level", "logger", "message", "request_id", "seconds", "client"} <= served.keys()
    assert served["model"] == "shoes"
    assert "sesame" not in json.dumps(lines)


@pytest.mark.parametrize(("grace", "signals"), [(600.0, 2), (0.0, 1)], ids=["second", "late"])
def test_a_second_signal_or_the_end_of_the_grace_gives_up(grace, signals):
    def network(x, t, cond):  # of five seconds a request
        time.sleep(0.02)
        return x

    results, urls = [], []
    with support.make_engine(network) as engine:
        app = create_app({"shoes": engine}, warm_up=False)

        def abort():
            engine.close(abort=True)

        def run():
            results.append(serve(app, port=0, grace=grace, abort=abort, started=urls.append))

        thread = threading.Thread(target=run)
        thread.start()
        until(lambda: urls)
        begun = begin(Service(int(urls[0].rpartition(":")[2]), app))
        for _ in range(signals):
            app.state.lifecycle.drain()
        assert begun.getresponse().status == 503
        thread.join(http_service.TIMEOUT)
    assert results == [False]


def test_headers_that_do_not_come_are_given_up():
    with support.make_engine() as engine:
        app = create_app({"rows": engine}, warm_up=False)
        with http_service.served(app, http=protocol_within(0.2)) as service:
            address = "127.0.0.1", service.port
            with socket.create_connection(address, timeout=http_service.TIMEOUT) as silent:
                assert silent.recv(10) == b""
            with socket.create_connection(address, timeout=http_service.TIMEOUT) as slow:
                slow.sendall(b"GET /health HTTP/1.1\r\nHost: here\r\n")
                assert slow.recv(10) == b""
            connection = service.connect()
            for _ in range(2):  # a connection that is kept is not closed for the time that its requests took together
                service.begin(connection, "GET", "/health")
                assert connection.getresponse().read()
            connection.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"x" * 1000) for i in range(200)),
        b"GET /health HTTP/1.1\r\nX: " + b"x" * 200_000,
        b"POST /wait HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\nGET /health HTTP/1.1\r\nX: " + b"x" * 200_000,
    ],
    ids=["many", "one", "those of a second request before the first is answered"],
)
def test_headers_without_an_end_are_refused(sent):
    ended = threading.Event()

    async def waiting(scope, receive, send):
        while (await receive())["type"] != "http.disconnect":
            pass
        ended.set()

    with (
        http_service.served(waiting, http=protocol_within(60), lifespan="off") as service,
        socket.create_connection(("127.0.0.1", service.port), timeout=http_service.TIMEOUT) as endless,
    ):
        with contextlib.suppress(ConnectionError):  # it may be refused while the rest is sent
            for begin in range(0, len(sent), 1000):
                endless.sendall(sent[begin : begin + 1000])
        with contextlib.suppress(ConnectionError):
            assert endless.recv(12) in (b"HTTP/1.1 400", b"")
        if sent.startswith(b"POST"):
            assert ended.wait(http_service.TIMEOUT)


def test_a_connection_is_kept_for_longer_than_clients_keep_it():
    """httpx keeps one for 5 seconds, as uvicorn does unless asked, and then a request may be lost."""
    with running("shoes=fashion") as (_, service, _):
        connection = service.connect()
        for wait in (0, 5.5):
            time.sleep(wait)
            service.begin(connection, "GET", "/health")
            with connection.getresponse() as answer:
                assert (answer.status, answer.read()) == (200, b'{"status":"alive"}')


def test_a_client_that_does_not_read_is_given_up():
    ended = threading.Event()

    async def endless(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        gone = asyncio.ensure_future(receive())
        while not gone.done():
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
            await asyncio.sleep(0)
        ended.set()

    with (
        http_service.served(endless, http=protocol_within(0.3), lifespan="off") as service,
        socket.create_connection(("127.0.0.1", service.port), timeout=http_service.TIMEOUT) as deaf,
    ):
        deaf.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        assert ended.wait(http_service.TIMEOUT)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nothing"], 1, "nothing"),
        (["fashion", "fashion"], 2, "models must have names of their own, two are 'fashion': give NAME=FOLDER"),
        (["fashion", "--api-key-file", "empty"], 2, "--api-key-file must hold a key a line, empty holds none"),
        (["fashion", "--api-key-file", "missing"], 1, "missing: No such file or directory"),
        (["fashion", "--costs", "empty"], 2, ""),
        (["fashion", "--host", "192.0.2.1", "--api-key-file", "key"], 1, "cannot listen at 192.0.2.1, port 0"),
        (["fashion", "--policy", "lottery"], 2, "lottery"),
    ],
)
def test_what_cannot_be_served_is_an_error(arguments, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").touch()
    Path("key").write_text("a\n")
    result = CliRunner().invoke(command_line, ["serve", *arguments, "--port", "0", "--threads", "1"])
    assert (result.exit_code, message in result.output) == (code, True), result.output


def test_a_bundle_is_served_by_its_kind_and_name():
    model = load_model("shoes=fashion", threads=1)
    try:
        assert (model.name, model.classes[-1], model.size) == ("shoes", "ankle boot", (28, 28))
    finally:
        model.close()


def test_costs_are_measured_once(tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr("stepfuse.server.create_app", lambda models, calibrate, **options: used.append(calibrate))
    monkeypatch.setattr("stepfuse.server.run.serve", lambda app, **options: True)
    arguments = ["serve", "fashion", "--threads", "1", "--max-rows", "2", "--costs", str(tmp_path / "costs.json")]
    for flags in (["--calibrate"], []):
        result = CliRunner().invoke(command_line, [*arguments, *flags])
        assert result.exit_code == 0, result.output
    assert used[0] == used[1] == read_costs(tmp_path / "costs.json")
    assert used[0]["fashion"].row > 0


def test_costs_are_kept(tmp_path):
    costs = {"fashion": sf.CostCurve(0.001, 0.0025)}
    (tmp_path / "costs.json").write_text(costs_text(costs))
    assert read_costs(tmp_path / "costs.json") == costs
    (tmp_path / "costs.json").write_text('{"fashion": {"fixed": -1, "row": 1}}')
    with pytest.raises(ValueError, match=r"needs fixed >= 0 and row > 0 seconds, got -1 and 1"):
        read_costs(tmp_path / "costs.json")
    (tmp_path / "costs.json").write_text("[1]")
    with pytest.raises(ValueError, match="must hold costs by name"):
        read_costs(tmp_path / "costs.json")
