"""A large file's checksum is compared while the file is used, and nothing leaves before it is right."""

import threading

import pytest

import stepfuse as sf
from stepfuse.bundle.bundle import checked_in_use, open_to_use
from stepfuse.bundle.folder import LARGE
from stepfuse.bundle.open_file import OpenFile


@pytest.fixture
def bundle(tmp_path):
    fashion = sf.Bundle.load("fashion")
    assert fashion.denoiser.stat().st_size >= LARGE
    said = {"info": fashion.info, "provenance": "a copy", "licence": fashion.licence}
    return sf.write_bundle(tmp_path / "copy", name="copy", files={"denoiser.onnx": fashion.denoiser}, **said).path


def flip(folder, at):
    file = folder / "denoiser.onnx"
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.fixture
def held(monkeypatch):
    """Checksums of large files wait for this event."""
    go_on, digest = threading.Event(), OpenFile.digest

    def held_digest(file):
        assert file.size < LARGE or go_on.wait(60)
        return digest(file)

    monkeypatch.setattr(OpenFile, "digest", held_digest)
    yield go_on
    go_on.set()


@pytest.mark.parametrize("at", [0, -1, 100], ids=["its-first-byte", "a-weight", "its-graph"])
def test_a_damaged_network_is_refused_by_its_checksum(bundle, at):
    flip(bundle, at)
    with pytest.raises(sf.BundleError, match=r"denoiser\.onnx: sha256 must be"):
        sf.Bundle.load(bundle)
    with pytest.raises(sf.BundleError, match=r"denoiser\.onnx: sha256 must be"):
        sf.Engine.load(bundle)


def test_every_use_of_a_damaged_bundle_is_refused(bundle):
    flip(bundle, -1)
    opened = open_to_use(bundle)
    for _ in range(2):
        with pytest.raises(sf.BundleError, match="sha256 must be"):
            sf.Engine.load(opened)
    with pytest.raises(sf.BundleError, match="sha256 must be"):
        opened.opened["denoiser.onnx"].read()


def test_the_network_is_used_while_it_is_checked(bundle, held):
    with checked_in_use(bundle) as opened:
        assert opened.info.shape == (1, 28, 28)
        assert opened.opened["denoiser.onnx"].mapped()[:1]
        held.set()


def test_an_engine_waits_for_the_checksum(bundle, held):
    loaded = []
    waiting = threading.Thread(target=lambda: loaded.append(sf.Engine.load(bundle)))
    waiting.start()
    waiting.join(0.5)
    assert not loaded
    held.set()
    waiting.join(60)
    loaded[0].close()


def test_what_goes_wrong_in_use_is_raised_where_the_file_is_right(bundle):
    with pytest.raises(ValueError, match="of its own"), checked_in_use(bundle):
        raise ValueError("of its own")
    flip(bundle, -1)
    with pytest.raises(sf.BundleError, match="sha256 must be"), checked_in_use(bundle):
        raise ValueError("a network of the damaged file")


def test_without_a_thread_left_files_are_checked_all_the_same(bundle, monkeypatch):
    def no_thread(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    assert sf.Bundle.load(bundle).name == "copy"
    flip(bundle, -1)
    with pytest.raises(sf.BundleError, match="sha256 must be"):
        sf.Bundle.load(bundle)


def test_trusted_files_are_not_checked(bundle, held):
    sf.Engine.load(bundle, verify=False).close()
