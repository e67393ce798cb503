"""What the tests of exports share."""

from types import SimpleNamespace

import pytest

from stepfuse.bundle.open_file import OpenFile


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Names of the files that are hashed, in order, and the most new bytes that lie under ``tmp_path`` as they are."""

    def bytes_on_disk():
        return sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())

    found, before, sha256 = SimpleNamespace(hashed=[], peak_bytes=0), bytes_on_disk(), OpenFile.digest

    def hash_and_measure(file):
        found.hashed.append(file.path.name)
        found.peak_bytes = max(found.peak_bytes, bytes_on_disk() - before)
        return sha256(file)

    monkeypatch.setattr(OpenFile, "digest", hash_and_measure)
    return found
