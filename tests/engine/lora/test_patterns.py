"""Patterns of module names against Python's ``re``, as PEFT uses it; what would need backtracking is refused."""

import re
import time

import pytest

from stepfuse.lora.patterns import NamePattern

NAMES = [
    "",
    "to_q",
    "xto_q",
    "mid.to_q",
    "down_blocks.0.attn1.to_q",
    "down_blocks.12.attn2.to_k",
    "layers.3.to_out.0",
    "a.b.c",
    "aXb.c",
    "to_q.extra",
    ".to_q",
    "a|b",
]
PATTERNS = [
    "to_q",
    "^to_q",
    "to_q$",
    "^to_q$",
    r"attn1\.to_q",
    "attn1.to_q",
    r"down_blocks\.\d+\.attn[12]\.to_(q|k)",
    r"layers\.(?:0|3)\..*",
    ".*",
    "",
    "a.b",
    r"\w+",
    r"to_out\.0|to_q",
    "^a|c",
    "b?c",
    r"to_(out\.(0|1)|q)",
    "[^x]to_q",
    r"x?to_[a-z]+",
    r"(mid|down_blocks\.0\.attn1)\.to_(q|k|v)",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_the_names_that_peft_finds(pattern):
    for name in NAMES:
        want = re.match(rf"(.*\.)?({pattern})$", name) is not None
        assert NamePattern(pattern).matches(name) == want, name


REFUSED = ["(a+)+$", "(a|aa)+", "a{2,}", r"(a)\1", "(?=a)", "a++", "(", ")", "[", r"\b", "*", "(?i)a", "(a|b)*", "a**"]


@pytest.mark.parametrize("pattern", [*REFUSED, "a" * 1001, "(a|b|c|d)" * 4])
def test_other_expressions_are_refused(pattern):
    with pytest.raises(ValueError, match=r"it is none that|more than"):
        NamePattern(pattern)


def test_a_pattern_a_module_takes_no_long_time():
    names = [
        f"down_blocks.{a}.attentions.{b}.transformer_blocks.{c}.attn1.to_q"
        for a in range(8)
        for b in range(8)
        for c in range(8)
    ]
    patterns, began = [NamePattern(name) for name in names], time.perf_counter()
    assert [next(i for i, pattern in enumerate(patterns) if pattern.matches(name)) for name in names] == list(
        range(512)
    )
    assert time.perf_counter() - began < 5  # a tenth of a second; without the shortcut, minutes


def test_a_long_name_takes_no_long_time():
    pattern, began = NamePattern(".*" * 20 + "b"), time.perf_counter()
    assert not pattern.matches("a." * 500)
    assert time.perf_counter() - began < 1  # milliseconds; with backtracking, as many years
