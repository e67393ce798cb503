"""Records of the logger ``stepfuse``: how requests end, and what was tried again, each with its request's id."""

import logging
import threading

import numpy as np
import pytest
import support

import stepfuse as sf

TIMEOUT = 60  # seconds: nothing here takes one; a hang must end


class Network:
    """Waits in its first call until it is opened; spoils class 3 and raises on class 5."""

    def __init__(self):
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self, x, t, cond):
        self.entered.set()
        assert self.opened.wait(TIMEOUT)
        if 5 in cond["class_labels"]:
            raise ArithmeticError("no such class")
        prediction = support.rowwise(x, t, cond)
        prediction[cond["class_labels"] == 3] = np.nan
        return prediction


@pytest.fixture
def network():
    return Network()


@pytest.fixture
def engine(network, caplog):
    with caplog.at_level(logging.DEBUG, "stepfuse"), support.make_engine(network) as engine:
        yield engine


def of_requests(caplog):
    """The records by the ids of the requests that they are about."""
    assert all(record.name == "stepfuse" for record in caplog.records)
    found = {record.request_id: record for record in caplog.records}
    assert len(found) == len(caplog.records)
    return found


def test_a_finished_request_is_for_debugging(engine, network, caplog):
    network.opened.set()
    engine.submit(sf.Request(steps=3, seed=0, id="order 7")).result(TIMEOUT)
    [record] = caplog.records
    assert record.levelno == logging.DEBUG
    assert (record.request_id, record.outcome) == ("order 7", "finished")
    assert record.wait_seconds >= 0
    assert record.run_seconds > 0
    assert record.getMessage().startswith("request order 7 finished after ")


def test_requests_without_an_id_are_numbered(engine, network, caplog):
    network.opened.set()
    engine.submit(sf.Request(steps=2)).result(TIMEOUT)
    engine.sample(2, steps=2)
    assert list(of_requests(caplog)) == ["1", "2", "3"]


def test_a_failed_request_is_a_warning(engine, network, caplog):
    network.opened.set()
    error = engine.submit(sf.Request(cond=3, steps=3, seed=0, id="order 7")).exception(TIMEOUT)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert (record.request_id, record.outcome) == ("order 7", "failed")
    assert record.getMessage().endswith(f": {error}")


def test_a_cancelled_request_is_for_debugging(engine, network, caplog):
    engine.submit(sf.Request(steps=1, seed=0, id="first"))
    assert network.entered.wait(TIMEOUT)
    engine.submit(sf.Request(steps=1, seed=0, id="second")).cancel()
    network.opened.set()
    engine.close()
    found = of_requests(caplog)
    assert {id: record.outcome for id, record in found.items()} == {"first": "finished", "second": "cancelled"}
    assert found["second"].levelno == logging.DEBUG


def test_an_expired_request_is_a_warning(engine, network, caplog):
    engine.submit(sf.Request(steps=1, seed=0, id="first"))
    assert network.entered.wait(TIMEOUT)
    future = engine.submit(sf.Request(steps=1, seed=0, id="second", timeout=0.001))
    threading.Timer(0.005, network.opened.set).start()
    assert isinstance(future.exception(TIMEOUT), sf.RequestTimeout)
    record = of_requests(caplog)["second"]
    assert record.levelno == logging.WARNING
    assert "timeout of 0.001 s" in record.getMessage()


def test_a_forward_that_is_tried_again_is_a_warning(engine, network, caplog):
    first = engine.submit(sf.Request(steps=1, seed=0, id="first"))
    assert network.entered.wait(TIMEOUT)
    futures = [engine.submit(sf.Request(cond=i, steps=2, seed=i, id=str(i))) for i in (1, 5, 2)]
    network.opened.set()
    assert [future.exception(TIMEOUT) is None for future in [first, *futures]] == [True, True, False, True]
    engine.close()
    retried = of_requests(caplog).pop("1, 5, 2")
    assert retried.levelno == logging.WARNING
    assert retried.getMessage().startswith("a forward of 3 requests raised ArithmeticError('no such class')")
    levels = {id: record.levelno for id, record in of_requests(caplog).items() if record is not retried}
    assert levels == {"first": logging.DEBUG, "1": logging.DEBUG, "5": logging.WARNING, "2": logging.DEBUG}


def test_nothing_but_warnings_by_default(network, caplog):
    with support.make_engine(network) as engine:
        network.opened.set()
        engine.sample(3, steps=2)
        engine.submit(sf.Request(cond=3, steps=2, seed=0, id="order 7")).exception(TIMEOUT)
    assert [record.request_id for record in caplog.records] == ["order 7"]
