"""The page: what it loads, what it shows in a browser, and what the engines are seen doing."""

import asyncio
import itertools
import json
import re
from pathlib import Path

import chromium
import handmade
import http_service
import pytest
from http_service import GENERATIONS

import stepfuse as sf

pytest.importorskip("fastapi", reason="needs the extra serve")

import stepfuse.server
from stepfuse.server import create_app
from stepfuse.server.lifecycle import Lifecycle
from stepfuse.server.live import Live

PAGE = (Path(stepfuse.server.__file__).parent / "page.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    bundle = handmade.write_bundle(tmp_path_factory.mktemp("page") / "bundle")
    with sf.Engine.load("fashion", threads=1) as fashion, sf.TextToImage.load(bundle, threads=1) as pipe:
        app = create_app({"fashion": fashion, "cats": pipe}, warm_up=False)
        with http_service.served(app) as service:
            yield service


def test_the_page_is_one_file(service):
    answer = service.ask("GET", "/")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.body.decode() == PAGE
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert re.findall(r"https?://|src=|href=|@import", PAGE) == []


def test_every_name_of_the_script_is_in_the_page():
    named = set(re.findall(r'\$\("([\w-]+)"\)', PAGE))
    assert named <= set(re.findall(r'id="([\w-]+)"', PAGE))
    inputs = re.findall(r"<(?:input|select|textarea)\b", PAGE)
    assert len(re.findall(r"<label\b", PAGE)) == len(inputs)  # each within its own


def first_events(service, number):
    """The first events of ``/v1/live``, while a request is drawn."""
    connection = service.connect()
    service.begin(connection, "GET", "/v1/live")
    response = connection.getresponse()
    assert response.getheader("Content-Type").startswith("text/event-stream")
    yield json.loads(next_data(response))
    for _ in range(number):
        yield json.loads(next_data(response))
    connection.close()


def next_data(response):
    while not (line := response.readline()).startswith(b"data: "):
        assert line
    return line.removeprefix(b"data: ")


@pytest.mark.parametrize(("model", "prompt"), [("fashion", "bag"), ("cats", "a cat")])
def test_live_events_say_which_requests_share_each_forward(service, model, prompt):
    live = first_events(service, 200)
    before = next(live)["models"]
    assert before.keys() == {"fashion", "cats"}
    body = {"prompt": prompt, "n": 2, "steps": 12, "stream": True, "model": model}
    service.ask("POST", GENERATIONS, body, X_Request_ID="pair")
    iterations = []
    for event in live:
        iterations += event["iterations"]
        if event["models"][model]["finished"] == before[model]["finished"] + 2 and iterations:
            break
    live.close()
    assert {one["model"] for one in iterations} == {model}
    steps = {}
    for one in iterations:
        for row in one["requests"]:
            assert row["steps"] == 12
            steps.setdefault(row["id"], []).append(row["step"])
    assert steps.keys() == {"pair-0", "pair-1"}
    for of_request in steps.values():  # each forward takes it one step on
        assert of_request == list(range(1, 13))


class Idle:
    """A model that notes who observes it."""

    name, observer = "idle", None

    def observe(self, observer):
        self.observer = observer

    def stats(self):
        counts = dict.fromkeys(("waiting", "running", "samples", "network_passes", "forwards"), 0)
        return {**counts, "latency_seconds": {"sum": 0.0}}


def test_engines_report_while_there_is_a_reader_and_until_the_service_drains():
    async def run():
        model, lifecycle = Idle(), Lifecycle()
        live = Live([model], lifecycle)
        first, second = live.events(), live.events()
        await anext(first)
        await anext(second)
        assert model.observer is not None
        await first.aclose()
        assert model.observer is not None
        lifecycle.drain()
        assert [event async for event in second] == []
        assert model.observer is None

    asyncio.run(run())


@pytest.mark.slow  # a browser starts
@pytest.mark.skipif(chromium.EXECUTABLE is None, reason="needs Chromium")
def test_pictures_come_into_being_in_a_browser(service, tmp_path):
    with chromium.opened(service.url) as page:
        page.resize(1200, 900)
        page.until("document.getElementById('model').options.length === 2")
        assert page.run("document.getElementById('class').options.length") == 10
        page.run("document.getElementById('steps').value = 12; document.getElementById('seed').value = 3")
        page.run("document.getElementById('n').focus()")
        page.press("Enter")  # the keyboard alone draws
        page.until("document.querySelectorAll('figcaption').length === 4")
        page.until("[...document.querySelectorAll('figcaption')].every(one => one.textContent.includes('seed'))")
        captions = page.run("[...document.querySelectorAll('figcaption')].map(one => one.textContent)")
        assert sorted(captions) == [f"t-shirt, ddim, 12 steps, seed {3 + i}" for i in range(4)]
        assert page.run("[...document.querySelectorAll('img')].every(one => one.naturalWidth === 28)")
        page.until("document.getElementById('numbers').textContent.includes('fashion: 0 running')")
        page.until("columns.length >= 12")
        for (width, height), dark in itertools.product([(1200, 900), (390, 844)], [False, True]):
            page.resize(width, height, dark=dark)
            assert page.run("document.documentElement.scrollWidth <= innerWidth")  # nothing is cut off
            page.screenshot(tmp_path / f"{width}-{'dark' if dark else 'light'}.png")
        page.run("document.getElementById('steps').value = 100000; document.querySelector('button').click()")
        page.until(
            "document.getElementById('wrong').textContent === 'num_inference_steps must be at most 250, got 100,000'"
        )
        assert page.problems == [] or all("400" in str(one) for one in page.problems)
