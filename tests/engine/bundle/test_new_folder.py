"""A folder that is being written: nothing at its target until it is finished, and each file hashed once."""

import pytest
import support

import stepfuse as sf
from stepfuse.bundle.new_folder import new_folder
from stepfuse.bundle.open_file import OpenFile


def test_files_of_a_bundle_are_hashed_once(tmp_path, monkeypatch):
    hashed, digest = [], OpenFile.digest
    monkeypatch.setattr(OpenFile, "digest", lambda file: hashed.append(file.path.name) or digest(file))
    bundle = support.write_tiny_bundle(tmp_path / "tiny")
    assert hashed == list(bundle.files) == ["denoiser.onnx"]
    assert sf.Bundle.load(bundle.path).files == bundle.files


def test_what_is_not_finished_is_removed(tmp_path):
    with new_folder(tmp_path / "deep" / "new", overwrite=False) as new:
        (new.path / "file").write_text("content")
        assert new.path.parent == tmp_path / "deep"
        assert not new.target.exists()
    assert not list((tmp_path / "deep").iterdir())


def test_a_folder_that_was_made_meanwhile_is_not_replaced(tmp_path):
    with new_folder(tmp_path / "new", overwrite=False) as new:
        (new.path / "file").write_text("content")
        new.target.mkdir()
        with pytest.raises(sf.BundleError, match="new exists already: pass overwrite=True"):
            new.finish({}, lambda path: None)
    assert [file.name for file in tmp_path.iterdir()] == ["new"]
    assert not list((tmp_path / "new").iterdir())
