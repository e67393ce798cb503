"""What the fuzzers call with the files they made: loaded and run, or refused by the errors of the documentation."""

import hashlib
import json

import numpy as np
import support
from mutations import contract

import stepfuse as sf

#: What a request to a network that loads may end in: the network may still be any.
RUN_ERRORS = (sf.BundleError, sf.DenoiserError, sf.EngineClosed, ValueError, TypeError)


def rewrite(folder, name, content):
    """Puts a file into a bundle as its author would: with its size and checksum."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / name).write_bytes(content)
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def load_and_sample(folder):
    """A step of whatever loads; samples keep the shape that the manifest states."""
    engine = None
    with contract(sf.BundleError):
        engine = sf.Engine.load(folder, threads=1)
    if engine is None:
        return
    with engine, contract(*RUN_ERRORS):
        if np.prod(engine.info.shape) < 1 << 20:
            samples = engine.sample(1, steps=1, seed=1)
            assert samples.shape == (1, *engine.info.shape)
            assert np.isfinite(samples).all()


def load_and_run(path):
    """A table that loads is one that runs."""
    table = None
    with contract(ValueError):
        table = sf.StepTable.load(path)
    if table is None:
        return
    with contract(), support.make_engine() as engine:
        assert len(table) >= 1
        repr(table).encode()
        with contract(ValueError, TypeError, sf.DenoiserError):
            engine.sample(1, table=table[:2], seed=0)


def read_lora(path):
    from stepfuse.lora.file import Lora

    with contract(sf.ExportError), np.errstate(over="ignore", invalid="ignore"):  # fusing refuses weights that overflow
        for pair in Lora.read(path).pairs:
            assert pair.delta(1.0).size == np.prod(pair.sizes)
