"""Files that fuzzers found to be mishandled once: each is refused now, or does what it says.

A new one goes into ``corpus/``, in the folder of its kind: ``networks`` and ``manifests`` of the tiny bundle,
``tables``, ``loras``.
"""

from pathlib import Path

import pytest
import support
from mutations import contract
from targets import load_and_run, load_and_sample, read_lora, rewrite

CORPUS = sorted(Path(__file__).with_name("corpus").glob("*/*"))


def run_network(path, tmp_path):
    folder = support.write_tiny_bundle(tmp_path / "tiny").path
    rewrite(folder, "denoiser.onnx", path.read_bytes())
    load_and_sample(folder)


def run_manifest(path, tmp_path):
    folder = support.write_tiny_bundle(tmp_path / "tiny").path
    (folder / "manifest.json").write_bytes(path.read_bytes())
    load_and_sample(folder)


RUN = {
    "networks": run_network,
    "manifests": run_manifest,
    "tables": lambda path, tmp_path: load_and_run(path),
    "loras": lambda path, tmp_path: read_lora(path),
}


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_what_was_found_once(path, tmp_path):
    with contract():
        RUN[path.parent.name](path, tmp_path)
