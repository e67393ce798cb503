"""What a client may get wrong: each has its status, rule and value, and the service goes on."""

import json
import re
import socket
import time
from contextlib import closing

import http_service
import pytest

import stepfuse as sf

pytest.importorskip("fastapi", reason="needs the extra serve")

from stepfuse.server import ClassModel, Limits, create_app

LIMITS = Limits(images=4, steps=50, pixels=28 * 28, body_bytes=4096, body_seconds=0.3)


@pytest.fixture(scope="module")
def service():
    with sf.Engine.load("fashion", threads=1) as engine:
        app = create_app({"fashion": engine}, limits=LIMITS, warm_up=False)
        with http_service.served(app) as service:
            yield service


@pytest.fixture(autouse=True)
def _goes_on(service):
    yield
    assert service.generate(steps=1).status == 200


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt": "sneker"}, "prompt", "prompt must be one of .*, got 'sneker' \\(did you mean sneaker"),
        ({"prompt": "11"}, "prompt", "prompt must be a class from 0 to 9, got 11"),
        ({"prompt": "x" * 4000}, "prompt", "prompt must be one of t-shirt"),
        ({"negative_prompt": "x"}, "negative_prompt", "negative_prompt must be one of t-shirt"),
        ({"prompt": 3}, "prompt", "prompt must be a valid string, got 3"),
        ({"n": 0}, "n", "n must be at least 1, got 0"),
        ({"n": 5}, "n", "n must be at most 4, got 5"),
        ({"num_inference_steps": -3}, "num_inference_steps", "num_inference_steps must be at least 1, got -3"),
        ({"num_inference_steps": 51}, "num_inference_steps", "num_inference_steps must be at most 50, got 51"),
        ({"steps": 2, "num_inference_steps": 2}, "steps", "steps is no field of this request"),
        ({"sampler_options": {"timesteps": [1] * 51}}, "sampler_options.timesteps", "at most 50 values, got 51"),
        ({"sampler_options": {"colour": 1}}, "sampler", "sampler 'ddim' takes steps, .*, got colour"),
        ({"sampler_options": {"steps": 3}}, "sampler_options", "must not hold steps, .*: num_inference_steps, got 3"),
        ({"sampler": "dimm"}, "sampler", "sampler must be one of ddim, .*, got 'dimm' \\(did you mean ddim\\?\\)"),
        ({"guidance_scale": -1}, "guidance_scale", "guidance_scale must be .*, got -1"),
        ({"eta": 2}, "eta", "eta must be .*, got 2"),
        ({"seed": 1 << 64}, "seed", "seed must be less than 18446744073709551616, got 18446744073709551616"),
        ({"seed": -1}, "seed", "seed must be at least 0, got -1"),
        ({"size": "512x512"}, "size", "size must be at most 784 pixels, got 262,144"),
        ({"size": "14x14"}, "size", "this model draws 28 x 28 pixels alone, got 14 x 14"),
        ({"size": "28 by 28"}, "size", "size must be WIDTHxHEIGHT in pixels, or auto, got '28 by 28'"),
        ({"output_format": "gif"}, "output_format", "output_format must be 'png', 'jpeg' or 'webp', got 'gif'"),
        ({"output_compression": 50}, "output_compression", "output_compression must be left out for png"),
        ({"output_format": "jpeg", "output_compression": 101}, "output_compression", "must be at most 100, got 101"),
        ({"partial_images": 2}, "partial_images", "partial_images must be left out without stream"),
        ({"stream": True, "response_format": "url"}, "response_format", "must be b64_json with stream, got 'url'"),
        ({"style": "natural"}, "style", "style must be 'vivid', got 'natural': say it in the prompt"),
        ({"quality": "hd"}, "quality", "quality must be 'auto' or 'standard', got 'hd'"),
        ({"background": "transparent"}, "background", "background must be 'auto' or 'opaque', got 'transparent'"),
        ({"lora": {"x": 1}}, "lora", "lora must be left out for 'fashion', .*: 'stepfuse serve --lora NAME=FILE' adds"),
        ({"colour": 1}, "colour", "colour is no field of this request, got 1"),
        ({"priority": 1 << 40}, "priority", "priority must fit 32 bits"),
        ({"timeout_ms": 0}, "timeout_ms", "timeout_ms must be at least 1, got 0"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_field_that_is_refused(service, fields, param, message):
    answer = service.generate(**fields)
    assert (answer.status, answer.error["type"], answer.error["param"]) == (400, "invalid_request_error", param)
    assert re.search(message, answer.error["message"]), answer.error["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body must be JSON"),
        (b'{"prompt": "\xff"}', "codec can't decode byte 0xff"),
        (b"\xff\xfe{", "There was an error parsing the body"),
        (b"[" * 4000, "maximum recursion depth|the body must be JSON"),
        (b'["bag"]', "the body must be a valid dictionary"),
        (b"", "the body must be given"),
        (b'{"prompt": "bag", "guidance_scale": NaN}', "guidance_scale must"),
    ],
)
def test_a_body_that_cannot_be_read(service, body, message):
    answer = service.ask("POST", http_service.GENERATIONS, body)
    assert answer.status == 400
    assert re.search(message, answer.error["message"]), answer.error["message"]


def test_a_form_is_no_json(service):
    answer = service.ask("POST", http_service.GENERATIONS, b"prompt=bag", Content_Type="text/plain")
    assert answer.status == 400


def test_a_body_that_is_too_large_is_not_read(service):
    began = time.monotonic()
    with closing(service.connect()) as connection:  # the headers alone: 100 MB are announced and never come
        connection.putrequest("POST", http_service.GENERATIONS)
        connection.putheader("Content-Length", "100000000")
        connection.endheaders()
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Connection")) == (413, "close")
        assert "a body must be at most 4.1 kB here, got 100 MB" in answer.read().decode()
    assert time.monotonic() - began < http_service.TIMEOUT / 2


def test_a_body_without_a_length_is_counted(service):
    with closing(service.connect()) as connection:
        connection.putrequest("POST", http_service.GENERATIONS)
        connection.putheader("Transfer-Encoding", "chunked")
        connection.putheader("Content-Type", "application/json")
        connection.endheaders()
        connection.send(b"2000\r\n" + b" " * 0x2000 + b"\r\n")
        assert connection.getresponse().status == 413


def test_a_body_that_does_not_come_is_given_up(service):
    with closing(service.connect()) as connection:
        connection.putrequest("POST", http_service.GENERATIONS)
        connection.putheader("Content-Length", "100")
        connection.endheaders()
        connection.send(b'{"prompt"')
        answer = connection.getresponse()
        assert answer.status == 408
        assert "must have come within 0.3 seconds, got 9 bytes" in answer.read().decode()


def test_what_is_no_http_is_answered_and_closed(service):
    with socket.create_connection(("127.0.0.1", service.port), timeout=http_service.TIMEOUT) as connection:
        connection.sendall(b"\x16\x03\x01garbage\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("DELETE", "/v1/models", 405)])
def test_a_path_or_method_that_there_is_not(service, method, path, status):
    answer = service.ask(method, path)
    assert (answer.status, answer.error["type"]) == (status, "invalid_request_error")


def test_a_request_id_that_cannot_be_logged_is_refused(service):
    answer = service.ask("GET", "/health", X_Request_ID="a b\x1b[31m")
    assert (answer.status, answer.error["code"]) == (400, "invalid_request_id")


def test_models_that_cannot_be_served_are_refused():
    one = {"shape": (2,), "schedule": sf.NoiseSchedule.linear()}
    rule = r"must sample pictures, shape \(1 or 3, H, W\), to be served, got \(2,\)"
    with sf.Engine.from_callable(lambda x, t, cond: x, **one) as engine, pytest.raises(ValueError, match=rule):
        create_app({"two": engine})
    with (
        sf.Engine.load("fashion", threads=1) as engine,
        pytest.raises(ValueError, match="a model must be given under its own name, 'shoes', got 'boots'"),
    ):
        create_app({"boots": ClassModel("shoes", engine)})
    with pytest.raises(ValueError, match="models must hold at least one model, got none"):
        create_app({})
    with pytest.raises(TypeError, match="a model must be an Engine or a TextToImage, got str"):
        create_app({"fashion": "fashion"})


@pytest.mark.parametrize("name", ["images", "steps", "body_bytes", "body_seconds"])
def test_limits_are_above_0(name):
    with pytest.raises(ValueError, match=f"{name} must be .* got 0"):
        Limits(**{name: 0})
