"""What the fuzzers share: hostile values, changes of documents and of bytes, and the bounds that every call must keep.

A fuzzer is a hypothesis test whose examples are changed copies of something valid. What it must show is one sentence:
valid or not, the call answers within bounds of time and memory, with a result or with an error of the kinds that its
documentation names.
"""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import json
import math
import resource
import signal
import sys

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SECONDS, MEGABYTES = 20, 400


def fuzz(share=1.0):
    """Settings of one fuzzer: its share of the profile's examples, always the same ones but under ``make fuzz``."""
    profile = settings.default
    return settings(
        max_examples=max(1, round(share * profile.max_examples)),
        derandomize=profile.max_examples < 1000,
        database=profile.database if profile.max_examples >= 1000 else None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def contract(*errors, longest=10_000):
    """What a call may raise, in how many characters, and how long and how much memory it may take."""
    peak = _peak()
    outer = signal.signal(signal.SIGALRM, _took_too_long)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    faulthandler.dump_traceback_later(3 * SECONDS, exit=True)  # for what hangs outside Python
    try:
        yield
    except errors as error:
        _require_readable(error, longest)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, outer)
        faulthandler.cancel_dump_traceback_later()
    assert _peak() - peak < MEGABYTES, f"took {_peak() - peak:.0f} MB"


def _require_readable(error, longest):
    text = str(error)
    assert text, f"{type(error).__name__} says nothing"
    assert len(text) < longest, f"{type(error).__name__} of {len(text)} characters: {text[:200]}..."
    text.encode()  # can be written to a log


def _took_too_long(*_):
    raise AssertionError(f"took longer than {SECONDS} s")


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)


NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400]),
    st.sampled_from([0.5, -0.0, 1e-320, 1e-30, 1e30, 1e308, math.nan, math.inf, -math.inf]),
    st.integers(),
    st.floats(),
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", "0", "../x", "/etc/passwd", "a/b", "a\0b", "x" * 70_000, "\ud800", "\x1b[31m", "(a+)+$", "ddim"]
    ),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(TEXTS.filter(lambda one: len(one) < 99), inner, max_size=3)
    ),
    max_leaves=6,
)


def _places(document, place=()):
    """All paths into a document of dictionaries and lists."""
    yield place
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield from _places(value, (*place, key))


def _at(document, place):
    for key in place:
        document = document[key]
    return document


@st.composite
def documents(draw, original):
    """A document of JSON's kinds with one to three entries replaced, removed, added, renamed or moved."""
    document = {"": copy.deepcopy(original)}
    for _ in range(draw(st.integers(1, 3))):
        *parents, key = draw(st.sampled_from(list(_places(document))[1:]))
        parent = _at(document, parents)
        change = draw(st.sampled_from(["replace", "replace", "elsewhere", "remove", "add", "rename"]))
        if change == "replace":
            parent[key] = draw(VALUES)
        elif change == "elsewhere":
            parent[key] = copy.deepcopy(_at(document, draw(st.sampled_from(list(_places(document))))))
        elif parents and change == "remove":
            del parent[key]
        elif change == "add" and isinstance(parent[key], dict):
            parent[key][draw(TEXTS)] = draw(VALUES)
        elif change == "add" and isinstance(parent[key], list):
            parent[key].append(draw(VALUES))
        elif change == "rename" and isinstance(parent, dict) and parents:
            parent[draw(TEXTS)] = parent.pop(key)
    return document[""]


@st.composite
def contents(draw, original):
    """Bytes with some changed, cut off, repeated or put in between."""
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        change = draw(st.sampled_from(["set", "flip", "cut", "insert", "repeat", "drop"]))
        if change == "set":
            content[at : at + 1] = bytes([draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))])
        elif change == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "cut":
            del content[at:]
        elif change == "insert":
            content[at:at] = draw(st.binary(max_size=9))
        else:
            end = at + draw(st.integers(1, 64))
            content[at:end] = content[at:end] * (2 if change == "repeat" else 0)
    return bytes(content)


@st.composite
def json_files(draw, original):
    """A JSON file: of a changed document, or changed as text."""
    kind = draw(st.sampled_from(["document", "document", "document", "bytes", "text"]))
    if kind == "document":
        return dump(draw(documents(original)))
    if kind == "bytes":
        return draw(contents(dump(original)))
    text = dump(original).decode()
    at = draw(st.sampled_from([index for index, one in enumerate(text) if one in ":,[]{}"]))
    piece = draw(
        st.sampled_from(
            ["[" * 100_000, '{"a":' * 50_000, "9" * 5_000, "NaN", "1e999", "\ufeff", '"\\ud800"', '{"a":1,"a":2}']
        )
    )
    return (text[: at + 1] + piece + text[at + 1 :]).encode()


def dump(document):
    """A document as a file; surrogates as JSON escapes them."""
    return json.dumps(document).encode()
