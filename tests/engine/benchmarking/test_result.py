"""What follows from times that are given: overhead, the fastest, noise, regressions; and the file that keeps them."""

import json
import math

import numpy as np
import pytest

from stepfuse.benchmarking import BenchResult, Case, Configuration, Error, Load, Start, compare
from stepfuse.serving.config import CostCurve

ONE, OTHER = Configuration("onnxruntime"), Configuration("openvino", "bf16", 2)
FACTS = {"machine": {"processor": "A", "cores": 2}, "versions": {"numpy": "2.0"}, "quick": False, "sampler": "ddim"}
EVEN = np.linspace(0.99, 1.01, 21)  # rounds of a quiet machine


def result(scale=1.0, *, first=EVEN, second=0.5 * EVEN, **changed):
    cases = [
        Case(ONE, 2, 0, 10, list(0.8 * scale * EVEN)),
        Case(ONE, 2, 5, 5, list(0.5 * scale * np.asarray(first))),
        Case(OTHER, 2, 0, 10, list(0.4 * scale * EVEN)),
        Case(OTHER, 2, 5, 5, list(0.5 * scale * np.asarray(second))),
    ]
    extra = {"files": {"denoiser.onnx": "0" * 64}, "costs": {ONE: CostCurve(0.01, 0.02)}, "facts": FACTS}
    return BenchResult(**{"model": "tiny", "cases": cases, **extra, **changed})


def test_the_overhead_is_what_a_run_takes_beyond_its_forwards():
    found = result()
    np.testing.assert_allclose(found.overhead(found.cases[1]), (0.1 - 0.08) * EVEN)
    assert found.cases[1].images_per_second == pytest.approx(4)
    assert math.isnan(found.cases[0].images_per_second)
    np.testing.assert_allclose(found.times_first(found.cases[3]), 2)


def test_the_fastest_is_said_if_the_rounds_say_it():
    assert result().fastest(2, 5) == OTHER
    assert result(second=2 * EVEN).fastest(2, 5) == ONE
    assert result().fastest(1, 5) is None


def test_nothing_is_said_of_what_differs_by_chance():
    shuffled = 0.999 * np.random.default_rng(0).permutation(EVEN)
    assert result(second=shuffled).fastest(2, 5) is None


def test_nothing_is_said_of_what_is_noisy():
    noisy = 0.1 * np.linspace(0.5, 2, 21)
    found = result(second=noisy)
    assert found.fastest(2, 5) is None
    assert [case.configuration for case in found.noisy] == [OTHER]


def test_a_file_keeps_all(tmp_path):
    found = result(
        errors=[Error(OTHER, 0.01, 0.02)],
        starts=[Start(ONE, [0.5], [10**8])],
        loads=[Load(ONE, 5.0, 10, [0.1, 0.2], 3, 4.5)],
        failures={OTHER: "an operator"},
    )
    found.save(tmp_path / "a.json")
    read = BenchResult.load(tmp_path / "a.json")
    assert read == found
    assert repr(read) == "<BenchResult of 'tiny': onnxruntime float32, openvino bf16, 2 threads; 4 cases>"
    summary = json.loads((tmp_path / "a.json").read_text())["cases"][1]["summary"]
    assert summary["images_per_second"] == pytest.approx(4)
    assert summary["overhead_per_forward"] == pytest.approx(0.02)
    assert not summary["noisy"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("model"), "model"),
        (lambda d: d.update(format_version=9), "format_version must be 1, got 9"),
        (lambda d: d["cases"][0]["seconds"].pop(), "as many rounds each"),
        (lambda d: d["cases"][0]["seconds"].__setitem__(0, -1.0), "a time must be a finite number above 0, got -1.0"),
        (lambda d: d["cases"][0]["seconds"].__setitem__(0, "1"), "a time must be a finite number above 0, got '1'"),
        (lambda d: d["cases"][0].update(colour="red"), "colour"),
        (lambda d: d.update(cases=[]), "at least one"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, change, message):
    data = result().as_json()
    change(data)
    (tmp_path / "a.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"a\.json must hold what stepfuse bench --output has written: ") as caught:
        BenchResult.load(tmp_path / "a.json")
    assert message in str(caught.value)


def verdicts(new, old, **options):
    return {str(one.case.configuration): one.verdict for one in compare(new, old, **options).cases if one.case.steps}


@pytest.mark.parametrize(
    ("scale", "verdict"), [(1.2, "slower"), (0.8, "faster"), (1.0, "same"), (1.052, "unclear"), (1 / 1.052, "unclear")]
)
def test_a_case_is_judged_by_where_its_interval_lies(scale, verdict):
    found = compare(result(scale), result())
    assert {one.verdict for one in found.cases} == {verdict}
    assert all(one.low <= one.ratio <= one.high for one in found.cases)
    assert all(one.ratio == pytest.approx(scale) for one in found.cases)
    assert bool(found.slower) == (verdict == "slower")
    assert bool(found.undecided) == (scale == 1.052)  # what is unclear only in how much faster it is cannot be slower


def test_a_larger_threshold_lets_a_regression_pass():
    assert set(verdicts(result(1.2), result(), threshold=0.3).values()) == {"same"}


def test_noise_in_either_result_is_no_verdict():
    noisy = np.linspace(0.5, 2, 21)
    assert verdicts(result(first=noisy), result())["onnxruntime float32"] == "noisy"
    assert verdicts(result(), result(first=noisy))["onnxruntime float32"] == "noisy"
    assert len(compare(result(first=3 * noisy), result()).undecided) == 1


def test_what_differs_beside_the_times_is_said():
    other = result(
        files={"denoiser.onnx": "1" * 64},
        facts={**FACTS, "machine": {"processor": "B", "cores": 2}, "versions": {}, "quick": True},
    )
    assert compare(result(), other).differences == [
        "the network's files have other contents",
        "processor is A, was B",
        "numpy is 2.0, was missing",
        "quick is False, was True",
    ]
    assert compare(result(model="a"), result(model="b")).differences == ["the model is a, was b"]


def test_cases_of_one_result_alone_are_named():
    fewer = result(cases=result().cases[:3])
    assert compare(fewer, result()).missing == [
        "openvino bf16, 2 threads, 5 steps of 2 rows is missing in the new result"
    ]
    assert compare(result(), fewer).missing == [
        "openvino bf16, 2 threads, 5 steps of 2 rows is missing in the old result"
    ]
    with pytest.raises(ValueError, match="needs a case that both results have"):
        compare(fewer, result(cases=result().cases[3:]))
    with pytest.raises(ValueError, match=r"threshold must be at least 0 and finite, got -0\.1"):
        compare(fewer, fewer, threshold=-0.1)
