"""``backend="auto"``: the choice follows from times that are given, is kept as long as it holds, and is logged."""

import hashlib
import json
import logging

import handmade
import numpy as np
import pytest
import support

import stepfuse as sf
from stepfuse.backends.host import auto, available
from stepfuse.backends.host.config import Cpu
from stepfuse.backends.host.onnxruntime import OnnxRuntimeBackend

FAST, SLOW = {1: 0.001, 4: 0.003, 16: 0.01}, {1: 0.002, 4: 0.004, 16: 0.011}


@pytest.fixture
def bundle(tmp_path):
    return support.write_tiny_bundle(tmp_path / "tiny")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch, caplog):
    """Where choices are kept."""
    monkeypatch.setenv("HOME", str(tmp_path))
    caplog.set_level(logging.INFO, logger="stepfuse")
    return tmp_path / ".cache/stepfuse/backends"


@pytest.fixture
def stub(monkeypatch):
    """Has forwards take the times that are given, or fail; the back ends that were measured."""
    monkeypatch.setattr(auto, "installed", lambda: ["onnxruntime", "openvino"])

    def given(**times):
        measured = []

        def measure(cpu, *_):
            measured.append(cpu.backend)
            if isinstance(times[cpu.backend], Exception):
                raise times[cpu.backend]
            return times[cpu.backend]

        monkeypatch.setattr(auto, "measure", measure)
        return measured

    return given


def choose(bundle, *, rows=64, deterministic=False, info=None, **cpu):
    found = auto.choose(Cpu("auto", **cpu), bundle, info or bundle.info, rows, deterministic=deterministic)
    return found.backend


@pytest.mark.parametrize(("times", "wanted"), [((FAST, SLOW), "onnxruntime"), ((SLOW, FAST), "openvino")])
def test_the_faster_one_is_chosen_and_the_log_says_why(bundle, stub, caplog, times, wanted):
    measured = stub(onnxruntime=times[0], openvino=times[1])
    assert choose(bundle) == wanted
    assert measured == ["onnxruntime", "openvino"]
    [record] = caplog.records
    assert record.levelno == logging.INFO
    assert f"backend {wanted} for {bundle.path}, the fastest in float32, measured now: onnxruntime" in caplog.text
    assert f"openvino {1e3 * times[1][1]:g} ms a forward of 1, {1e3 * times[1][4]:g} ms a forward of 4" in caplog.text


def test_the_geometric_mean_of_the_row_counts_that_all_have_decides():
    assert auto.fastest({"a": {1: 1.0, 16: 8.0}, "b": {1: 3.0, 16: 4.0}}) == "a"  # 8 against 12
    assert auto.fastest({"a": {1: 1.0, 16: 13.0}, "b": {1: 3.0, 16: 4.0}}) == "b"
    assert auto.fastest({"a": {1: 1.0, 16: 90.0}, "b": {1: 3.0}}) == "a"
    assert auto.fastest({"a": {1: 1.0}, "b": {1: 1.0}}) == "a"


def test_a_choice_is_kept_for_the_next_process(bundle, stub, caplog):
    measured = stub(onnxruntime=SLOW, openvino=FAST)
    choose(bundle)
    assert choose(bundle) == "openvino"
    assert len(measured) == 2
    assert "measured before: onnxruntime 2 ms a forward of 1" in caplog.text


def test_whatever_a_choice_depends_on_has_it_measured_anew(bundle, stub, tmp_path, monkeypatch):
    from dataclasses import replace

    measured = stub(onnxruntime=SLOW, openvino=FAST)
    other = support.write_tiny_bundle(tmp_path / "other", prediction_type="v_prediction")
    larger = replace(bundle.info, shape=(1, 8, 5))
    facts = auto.machine()
    for number, again in enumerate(
        [
            lambda: choose(bundle),
            lambda: choose(bundle, threads=1),
            lambda: choose(bundle, rows=2),
            lambda: choose(bundle, deterministic=True),
            lambda: choose(bundle, deterministic=True, rows=32),
            lambda: choose(bundle, info=larger),
            lambda: monkeypatch.setattr(auto, "machine", lambda: {**facts, "processor": "another"}) or choose(bundle),
            lambda: monkeypatch.setattr(auto, "versions", lambda names: {"openvino": "2099.1"}) or choose(bundle),
        ],
        start=1,
    ):
        again()
        assert len(measured) == 2 * number
    choose(other)  # the same network, whatever its manifest says beside it
    assert len(measured) == 2 * number


@pytest.mark.parametrize(
    "content",
    [
        b"text",
        b"{}",
        json.dumps({"seconds": {"onnxruntime": {"1": 1.0}}, "failed": {}}).encode(),
        json.dumps({"seconds": {"onnxruntime": {"1": 1.0}, "openvino": {"1": -1.0}}, "failed": {}}).encode(),
    ],
)
def test_a_damaged_choice_is_said_and_measured_anew(bundle, stub, home, caplog, content):
    measured = stub(onnxruntime=SLOW, openvino=FAST)
    choose(bundle)
    [file] = home.iterdir()
    file.write_bytes(hashlib.sha256(content).digest() + content)
    assert choose(bundle) == "openvino"
    assert len(measured) == 4
    assert f"{file} is damaged, and is measured anew" in caplog.text
    file.write_bytes(b"cut")
    assert choose(bundle) == "openvino"
    assert len(measured) == 6


def test_a_folder_that_cannot_be_written_is_said(bundle, stub, home, caplog):
    measured = stub(onnxruntime=SLOW, openvino=FAST)
    home.parent.mkdir(parents=True)
    home.write_text("no folder")
    assert choose(bundle) == choose(bundle) == "openvino"
    assert len(measured) == 4
    assert "a choice of back end cannot be kept, and is measured anew by the next process" in caplog.text


def test_a_back_end_that_fails_is_said_every_time(bundle, stub, caplog):
    measured = stub(onnxruntime=SLOW, openvino=sf.BundleError("no operator\nTopK"))
    for _ in range(2):
        caplog.clear()
        assert choose(bundle) == "onnxruntime"
        [warning] = [one for one in caplog.records if one.levelno == logging.WARNING]
        assert warning.getMessage() == f"backend openvino cannot run {bundle.path}: no operator\\nTopK"
    assert len(measured) == 2


def test_a_network_that_no_back_end_runs_is_an_error(bundle, stub):
    stub(onnxruntime=sf.BundleError("one"), openvino=sf.BundleError("another"))
    with pytest.raises(sf.BundleError, match="no back end runs its network: onnxruntime: one; openvino: another"):
        choose(bundle)


def test_a_damaged_network_is_refused_before_it_is_measured(stub, home, tmp_path):
    """What failed with it would be kept under the checksum of the right one."""
    fashion = sf.Bundle.load("fashion")
    said = {"info": fashion.info, "provenance": "a copy", "licence": fashion.licence}
    copy = sf.write_bundle(tmp_path / "copy", name="copy", files={"denoiser.onnx": fashion.denoiser}, **said)
    content = bytearray(copy.denoiser.read_bytes())
    content[-1] ^= 1
    copy.denoiser.write_bytes(content)
    measured = stub(onnxruntime=FAST, openvino=SLOW)
    with pytest.raises(sf.BundleError, match="sha256 must be"):
        sf.Engine.load(copy.path, backend="auto")
    assert not measured
    assert not list(home.glob("*"))


def test_the_only_one_that_is_installed_is_not_measured(bundle, monkeypatch, caplog):
    monkeypatch.setattr(available, "find_spec", lambda name: None)
    monkeypatch.setattr(auto, "measure", None)
    assert choose(bundle) == "onnxruntime"
    assert "backend onnxruntime: the only one that is installed and computes in float32" in caplog.text
    with pytest.raises(ImportError, match=r"precision='bf16' needs OpenVINO: pip install '.*\[openvino\]'"):
        choose(bundle, precision="bf16")


def test_reduced_precision_is_computed_by_what_has_it(bundle, stub, monkeypatch):
    own = {"onnxruntime": ["float32"], "openvino": ["float32", "bf16"]}
    stub()
    monkeypatch.setattr(auto, "precisions_of", own.get)
    assert choose(bundle, precision="bf16") == "openvino"
    message = "precision must be one that a back end computes in .*, got 'f16': onnxruntime has float32; openvino has"
    with pytest.raises(ValueError, match=message):
        choose(bundle, precision="f16")


@pytest.mark.parametrize("deterministic", [False, True])
def test_forwards_are_measured_as_the_engine_runs_them(bundle, monkeypatch, deterministic):
    rows = []
    forward = OnnxRuntimeBackend.forward
    monkeypatch.setattr(OnnxRuntimeBackend, "forward", lambda self, n: rows.append(n) or forward(self, n))
    found = auto.measure(Cpu(), bundle, bundle.info, [1, 4], 8, deterministic)
    assert list(found) == [1, 4]
    assert min(found.values()) > 0
    assert {*rows} == ({8} if deterministic else {1, 4})


def test_a_slow_network_is_measured_at_few_rows(bundle, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(auto.time, "perf_counter", lambda: now[0])

    def forward(self, rows):
        now[0] += 5.0

    monkeypatch.setattr(OnnxRuntimeBackend, "forward", forward)
    assert auto.measure(Cpu(), bundle, bundle.info, [1, 4, 16], 64, False) == {1: 5.0}


@pytest.mark.parametrize(("times", "computed_by"), [((FAST, SLOW), ""), ((SLOW, FAST), "openvino float32")])
def test_an_engine_and_a_pipeline_run_what_was_chosen(bundle, stub, tmp_path, times, computed_by):
    pytest.importorskip("openvino")
    stub(onnxruntime=times[0], openvino=times[1])
    backend = "openvino" if computed_by else "onnxruntime"
    with sf.Engine.load(bundle, backend="auto") as engine, sf.Engine.load(bundle, backend=backend) as named:
        assert engine.model.computed_by == computed_by
        np.testing.assert_array_equal(engine.sample(1, steps=2, seed=1), named.sample(1, steps=2, seed=1))
    pytest.importorskip("tokenizers")
    with sf.TextToImage.load(handmade.write_bundle(tmp_path / "pipeline"), backend="auto") as pipe:
        picture = pipe("a", steps=1, seed=0)
    assert picture.provenance[0].model.computed_by == computed_by


def test_what_is_measured_here_is_one_of_the_installed(bundle):
    with sf.Engine.load(bundle, backend="auto", threads=1) as engine:
        assert engine.model.computed_by in ("", "openvino float32")
