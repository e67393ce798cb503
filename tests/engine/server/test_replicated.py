"""An app that is one of several replicas, or mounted below another path."""

import time

import http_service
import pytest
import support
from http_service import GENERATIONS

pytest.importorskip("fastapi", reason="needs the extra serve")

from fastapi import FastAPI

from stepfuse.server import Limits, create_app, page_routes


@pytest.fixture(scope="module")
def engine():
    with support.make_engine() as engine:
        yield engine


@pytest.fixture(scope="module")
def replica(engine):
    with http_service.served(create_app({"rows": engine}, warm_up=False, replicated=True)) as service:
        yield service


def test_a_url_is_refused_before_anything_is_drawn(replica, engine):
    before = engine.stats()["submitted"]
    answer = replica.generate("boot", response_format="url")
    assert (answer.status, answer.error["param"]) == (400, "response_format")
    assert answer.error["message"] == "response_format must be b64_json where several replicas answer, got 'url'"
    assert engine.stats()["submitted"] == before
    assert replica.generate("boot", steps=1).status == 200


@pytest.mark.parametrize("path", ["/sdapi/v1/progress", "/metrics"])
def test_what_one_replica_has_is_refused(replica, path):
    answer = replica.ask("GET", path)
    assert (answer.status, answer.error["code"]) == (404, "of_one_replica")
    assert "of one replica, and any of several may be asked here: " in answer.error["message"]


def test_no_client_selects_the_model_of_all(engine):
    models = {"rows": engine, "other": engine}
    with http_service.served(create_app(models, warm_up=False, replicated=True)) as service:
        assert service.ask("POST", "/sdapi/v1/options", {"sd_model_checkpoint": "rows"}).status == 200
        answer = service.ask("POST", "/sdapi/v1/options", {"sd_model_checkpoint": "other"})
        assert (answer.status, answer.error["code"]) == (404, "of_one_replica")
        assert "send override_settings.sd_model_checkpoint with each request" in answer.error["message"]


def test_live_events_end_by_themselves(engine, monkeypatch):
    monkeypatch.setattr(page_routes, "_A_LOOK", 0.3)
    with http_service.served(create_app({"rows": engine}, warm_up=False, replicated=True)) as service:
        began = time.monotonic()
        answer = service.ask("GET", "/v1/live")
        assert time.monotonic() - began >= 0.3
    assert answer.status == 200
    assert {"iterations", "models"} == answer.events[0].keys()


def test_an_app_below_another_path_has_its_keys_and_bounds(engine):
    limits = Limits(body_bytes=100, upload_bytes=100_000)
    app = FastAPI()
    app.mount("/below", create_app({"rows": engine}, warm_up=False, api_keys=["sesame"], limits=limits))
    with http_service.served(app) as service:
        assert service.ask("GET", "/below/health").status == 200
        assert service.ask("GET", "/below/v1/models").status == 401
        key = {"Authorization": "Bearer sesame"}
        assert service.ask("POST", f"/below{GENERATIONS}", {"prompt": "boot", "steps": 1}, **key).status == 200
        long = {"init_images": ["a" * 200]}
        assert service.ask("POST", f"/below{GENERATIONS}", long, **key).status == 413
        assert service.ask("POST", "/below/sdapi/v1/img2img", long, **key).status == 400
