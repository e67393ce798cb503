"""Clients that vanish, send garbage or ask for what is refused, among others: no request is lost or left behind."""

import random
import socket
import threading

import http_service
import pytest
import support
from http_service import GENERATIONS, until

pytest.importorskip("fastapi", reason="needs the extra serve")

from stepfuse.server import create_app

CLIENTS, REQUESTS = 16, 40


class Client:
    """Asks for one thing after the other, by chance, and counts what was answered."""

    def __init__(self, service, seed):
        self.service, self.rng = service, random.Random(seed)
        self.answers = {}

    def __call__(self):
        for _ in range(REQUESTS):
            kind = self.rng.choice(["draw", "draw", "stream", "refused", "vanish", "vanish", "garbage"])
            status = getattr(self, kind)()
            self.answers.setdefault((kind, status), []).append(1)

    def fields(self):
        return {"prompt": "boot", "steps": self.rng.randint(1, 30), "n": self.rng.randint(1, 3)}

    def draw(self):
        return self.service.generate(**self.fields()).status

    def stream(self):
        fields = self.fields()
        answer = self.service.generate(**fields, stream=True, partial_images=2)
        assert sum("completed" in one["type"] for one in answer.events) == fields["n"]
        return answer.status

    def refused(self):
        return self.service.generate(self.rng.choice(["boots and bags", "boot" * 9999]), n=1).status

    def vanish(self):
        connection = self.service.connect()
        self.service.begin(connection, "POST", GENERATIONS, {**self.fields(), "stream": self.rng.random() < 0.5})
        if self.rng.random() < 0.5:
            connection.sock.recv(self.rng.randint(1, 500))
        connection.close()

    def garbage(self):
        with socket.create_connection(("127.0.0.1", self.service.port), timeout=http_service.TIMEOUT) as connection:
            connection.sendall(self.rng.choice([b"\x00\xff\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n", b"GET"]))


@pytest.mark.slow
def test_no_request_is_lost_among_clients_of_all_kinds():
    with support.make_engine(max_rows=8) as engine:
        app = create_app({"rows": engine}, warm_up=False)
        with http_service.served(app) as service:
            clients = [Client(service, seed) for seed in range(CLIENTS)]
            threads = [threading.Thread(target=client) for client in clients]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20 * http_service.TIMEOUT)
            until(lambda: app.state.lifecycle.running == 0)
            stats = engine.stats()
            assert service.generate("boot", steps=1).status == 200
    kinds = {kind for client in clients for kind in client.answers}
    assert kinds == {("draw", 200), ("stream", 200), ("refused", 400), ("vanish", None), ("garbage", None)}
    assert sum(len(one) for client in clients for one in client.answers.values()) == CLIENTS * REQUESTS
    assert (stats["waiting"], stats["running"], stats["failures"]) == (0, 0, 0)
    assert stats["submitted"] == stats["samples"] + stats["cancelled"]
