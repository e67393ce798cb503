"""The bundle: what is written is read back, and a write that fails changes nothing."""

from pathlib import Path

import numpy as np
import pytest
import support

import stepfuse as sf
from stepfuse.files import atomic

EMBEDDING = sf.CondInput(dtype="float32", shape=(2, 3), null=np.zeros((2, 3), np.float32))


@pytest.fixture
def bundle(tmp_path):
    return support.write_tiny_bundle(tmp_path / "tiny").path


@pytest.mark.parametrize(
    "info",
    [
        pytest.param({}, id="class-names"),
        pytest.param({"cond": {}}, id="unconditional"),
        pytest.param({"cond": {"text": EMBEDDING, "y": sf.CondInput(null=np.int64(-1))}}, id="null-arrays"),
        pytest.param({"prediction_type": "flow", "schedule": sf.NoiseSchedule.flow(shift=3.0)}, id="flow"),
        pytest.param({"schedule": sf.NoiseSchedule.from_alphas_cumprod([0.9, 0.5, 0.1])}, id="own-schedule"),
        pytest.param({"schedule": sf.NoiseSchedule.linear().rescale_zero_terminal_snr()}, id="zero-snr"),
        pytest.param({"timestep_dtype": "int64", "prediction_type": "v_prediction"}, id="integer-timesteps"),
        pytest.param({"defaults": {"sampler": "heun", "clip": 1.0}, "data_range": (0.0, 2.0)}, id="defaults"),
    ],
)
def test_what_is_written_is_read_back(tmp_path, info):
    network = support.write_network(tmp_path / "network.onnx")
    written = support.write_tiny_bundle(tmp_path / "deep" / "er" / "tiny", network=network, **info)
    read = sf.Bundle.load(tmp_path / "deep" / "er" / "tiny")
    facts = sf.ModelInfo(**{"shape": support.SHAPE, "schedule": support.SCHEDULE, "cond": support.COND, **info})
    for name in ("shape", "prediction_type", "timestep_dtype", "data_range", "defaults"):
        assert getattr(read.info, name) == getattr(facts, name)
    assert read.info.schedule.config == facts.schedule.config
    assert list(read.info.cond) == list(facts.cond)
    for name, spec in facts.cond.items():
        found = read.info.cond[name]
        assert (found.dtype, found.shape, found.names) == (spec.dtype, spec.shape, spec.names)
        np.testing.assert_array_equal(found.value(name, None), spec.value(name, None))
    assert (read.name, read.provenance, read.licence) == (written.name, "made by a test", "Apache-2.0")
    assert read.denoiser.read_bytes() == network.read_bytes()


def test_a_bundle_samples_by_the_defaults_of_its_manifest(tmp_path):
    defaults = {"sampler": "heun", "steps": 3, "guidance_scale": 2.0, "clip": 1.0}
    path = support.write_tiny_bundle(tmp_path / "tiny", defaults=defaults).path
    with sf.Engine.load(path, threads=1) as engine:
        np.testing.assert_array_equal(
            engine.sample(2, cond="bag", seed=1),
            engine.sample(2, cond="bag", seed=1, **defaults),
        )


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_is_replaced_only_on_request(bundle):
    before = snapshot(bundle.parent)
    with pytest.raises(sf.BundleError, match="tiny exists already: pass overwrite=True"):
        support.write_tiny_bundle(bundle)
    assert snapshot(bundle.parent) == before
    assert support.write_tiny_bundle(bundle, overwrite=True, data_range=(0, 9)).info.data_range == (0, 9)


def without_source(tmp_path, monkeypatch):
    return {"denoiser.onnx": tmp_path / "nowhere.onnx"}


def without_network(tmp_path, monkeypatch):
    return {"notes.txt": __file__}


def led_outside(tmp_path, monkeypatch):
    return {"denoiser.onnx": __file__, "../escaped": __file__}


def unable_to_exchange(tmp_path, monkeypatch):
    renameat2 = atomic._renameat2

    def fail(old, new, flags):
        if new == tmp_path / "tiny":
            raise OSError("disk full")
        return renameat2(old, new, flags)

    monkeypatch.setattr(atomic, "_renameat2", fail)
    return {"denoiser.onnx": __file__}


def unable_to_rename(tmp_path, monkeypatch):
    rename = Path.rename
    monkeypatch.setattr(atomic, "_renameat2", lambda old, new, flags: False)  # an old system

    def fail(self, target):
        if target == tmp_path / "tiny" and (self / "manifest.json").is_file() and fail.left:
            fail.left -= 1
            raise OSError("disk full")
        return rename(self, target)

    fail.left = 1
    monkeypatch.setattr(Path, "rename", fail)
    return {"denoiser.onnx": __file__}


@pytest.mark.parametrize("overwrite", [pytest.param(False, id="new"), pytest.param(True, id="over-an-old-one")])
@pytest.mark.parametrize("fault", [without_source, without_network, led_outside, unable_to_exchange, unable_to_rename])
def test_a_write_that_fails_leaves_everything_as_it_was(tmp_path, monkeypatch, fault, overwrite):
    if overwrite:
        support.write_tiny_bundle(tmp_path / "tiny")
    before = snapshot(tmp_path)
    facts = {"name": "tiny", "info": sf.ModelInfo((2,), support.SCHEDULE), "provenance": "", "licence": ""}
    files = fault(tmp_path, monkeypatch)
    with pytest.raises((OSError, sf.BundleError)):
        sf.write_bundle(tmp_path / "tiny", files=files, overwrite=overwrite, **facts)
    assert snapshot(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"tiny", "tiny.onnx"}


def test_only_a_bundle_is_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    network = support.write_network(tmp_path / "network.onnx")
    with pytest.raises(sf.BundleError, match=r"thesis has no manifest.json: only a folder with one is replaced"):
        support.write_tiny_bundle(tmp_path / "thesis", network=network, overwrite=True)
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "years of work"


def test_checksums_are_compared_unless_told_otherwise(tmp_path):
    bundle = support.write_tiny_bundle(tmp_path / "tiny")
    manifest = bundle.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace(bundle.files["denoiser.onnx"]["sha256"], "0" * 64))
    with pytest.raises(sf.BundleError, match="sha256 must be 0000"):
        sf.Engine.load(bundle.path)
    sf.Engine.load(bundle.path, verify=False).close()
