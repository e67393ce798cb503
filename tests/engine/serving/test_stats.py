"""What ``Engine.stats`` returns: a dataclass, and its attributes by name."""

import dataclasses
import re

import pytest
import support

import stepfuse as sf


@pytest.fixture(scope="module")
def stats():
    with support.make_engine() as engine:
        engine.sample(3, cond=1, steps=4, guidance_scale=2.0)
        return engine.stats()


def test_counts_are_attributes_and_by_name(stats):
    assert stats.samples == stats["samples"] == 3
    assert stats.network_passes == 2 * 3 * 4
    assert dict(stats) == {field.name: getattr(stats, field.name) for field in dataclasses.fields(sf.EngineStats)}
    with pytest.raises(KeyError, match="nothing"):
        stats["nothing"]


def test_a_histogram_has_a_count_more_than_bounds(stats):
    latency = stats.latency_seconds
    assert latency["counts"] == latency.counts
    assert sum(latency.counts) == 3
    assert len(latency.counts) == len(latency.bounds) + 1
    assert latency.sum > 0


def test_every_attribute_is_documented():
    documented = set(re.findall(r"^    +(\w+): ", sf.EngineStats.__doc__, re.MULTILINE))
    assert documented == {field.name for field in dataclasses.fields(sf.EngineStats)}
