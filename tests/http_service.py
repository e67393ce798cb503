"""An app behind a real server on a port of its own, and a plain client: Python's own, which hides nothing."""

import base64
import http.client
import io
import json
import threading
import time
import zlib
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image

TIMEOUT = 120  # seconds: nothing here takes two; a hang must end
GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"


@dataclass
class Answer:
    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json["error"]

    @property
    def events(self):
        """Of a stream: each event's data."""
        lines = self.body.decode().splitlines()
        return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


class Service:
    def __init__(self, port, app):
        self.port, self.app = port, app
        self.url = f"http://127.0.0.1:{port}"

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)

    def ask(self, method, path, body=None, **headers):
        """A request, its body bytes or JSON, and its answer."""
        connection = self.connect()
        self.begin(connection, method, path, body, **headers)
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        answer = Answer(response.status, found, response.read())
        connection.close()
        return answer

    def begin(self, connection, method, path, body=None, **headers):
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Content-Type": "application/json", **{name.replace("_", "-"): one for name, one in headers.items()}}
        connection.request(method, path, data, given)

    def edit(self, files, **fields):
        """A form of files and texts, written here by RFC 7578."""
        parts = [(f'name="{name}"', str(value).encode()) for name, value in fields.items()]
        parts += [(f'name="{name}"; filename="{name}.png"', data) for name, data in files]
        head = "Content-Disposition: form-data; {}\r\n\r\n"
        body = b"".join(b"--edge\r\n" + head.format(name).encode() + data + b"\r\n" for name, data in parts)
        return self.ask("POST", EDITS, body + b"--edge--\r\n", Content_Type="multipart/form-data; boundary=edge")

    def generate(self, prompt="sneaker", **fields):
        return self.ask("POST", GENERATIONS, {"prompt": prompt, **fields})


@contextmanager
def served(app, **config):
    """Serves an app until the block ends."""
    import uvicorn

    usual = {"log_config": None, "http": "h11", "timeout_graceful_shutdown": 5}  # ``serve`` parses by h11, too
    server = uvicorn.Server(uvicorn.Config(app, port=0, **{**usual, **config}))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started or not thread.is_alive())
    try:
        yield Service(server.servers[0].sockets[0].getsockname()[1], app)
    finally:
        server.should_exit = True
        thread.join(TIMEOUT)


def until(condition):
    """Waits for it."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def image_of(encoded):
    """The picture of base64."""
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def levels_of(encoded):
    """Its 8-bit values, as an array."""
    return np.asarray(image_of(encoded))


def as_levels(samples, data_range=(-1.0, 1.0)):
    """Samples (C, H, W) as the 8-bit values of a picture, computed here."""
    low, high = data_range
    levels = np.round(np.clip((samples.astype(np.float64) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    return levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)


def png(levels, dtype=np.uint8, **options):
    """The file of a picture of 8-bit values, (H, W), (H, W, 2), (H, W, 3) or (H, W, 4), or of 16-bit ones, (H, W)."""
    file = io.BytesIO()
    clear = options.pop("transparency", None)  # Pillow writes it for 16 bits since version 11 alone
    Image.fromarray(np.asarray(levels, dtype=dtype)).save(file, format="PNG", **options)
    data = file.getvalue()
    if clear is None:
        return data
    pixels = data.index(b"IDAT") - 4
    return data[:pixels] + png_chunk(b"tRNS", clear.to_bytes(2, "big")) + data[pixels:]


def png_chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def bomb():
    """A PNG of a kilobyte that says it has 10^10 pixels."""

    side = (100_000).to_bytes(4, "big")
    pixels = zlib.compress(bytes(1_000_000), 9)
    head = png_chunk(b"IHDR", side + side + bytes([8, 0, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")
