"""Every library that runs a bundle on the CPU: it gives what its file says, and refuses a network that does not fit."""

import numpy as np
import onnxruntime
import pytest
import support
import tolerances

import stepfuse as sf
from stepfuse.backends.host.config import Cpu
from stepfuse.backends.host.network import open_network
from stepfuse.backends.host.onnxruntime import open_session


def test_the_engine_gives_what_the_session_itself_gives(tmp_path, backend):
    bundle = support.write_tiny_bundle(tmp_path / "tiny")
    session = onnxruntime.InferenceSession(bundle.denoiser, providers=["CPUExecutionProvider"])

    def network(x, t, cond):
        return session.run(None, {"sample": x, "timestep": t, **cond})[0]

    arguments = {"cond": ["bag", None, "coat"], "steps": [2, 5, 3], "guidance_scale": 3.0, "seed": 1}
    with sf.Engine.load(bundle.path, backend=backend) as loaded, support.make_engine(network) as called:
        found, wanted = loaded.sample(3, **arguments), called.sample(3, **arguments)
    bound = 0 if backend == "onnxruntime" else tolerances.OPENVINO
    assert np.abs(found - wanted).max() <= bound * np.abs(wanted).max()


def test_engines_of_several_shapes_share_a_network(tmp_path, backend):
    bundle = support.write_tiny_bundle(tmp_path / "tiny")
    opened = [open_network(bundle, Cpu(backend, threads=1))]
    if backend == "onnxruntime":
        opened.append(open_session(bundle.denoiser, threads=1))
    for session in opened:
        with sf.Engine.load(bundle, session=session) as one, sf.Engine.load(bundle, session=session) as other:
            np.testing.assert_array_equal(one.sample(1, steps=2, seed=3), other.sample(1, steps=2, seed=3))


def refuse(folder, backend, message, *, network=None, **info):
    path = support.write_tiny_bundle(folder / "tiny", network=network, **info).path
    with pytest.raises(sf.BundleError, match=message) as caught:
        sf.Engine.load(path, backend=backend, threads=1)
    assert str(path / "denoiser.onnx") in str(caught.value)


def test_a_file_that_is_no_network_is_refused(tmp_path, backend):
    (tmp_path / "text").write_bytes(b"no network")
    with pytest.raises(sf.BundleError, match=r"denoiser\.onnx must be an ONNX file: wire type 6"):
        support.write_tiny_bundle(tmp_path / "tiny", network=tmp_path / "text")
    (tmp_path / "text").write_bytes(b"")  # a message without fields
    refuse(tmp_path, backend, "does not load in (ONNX Runtime|OpenVINO): ", network=tmp_path / "text")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        pytest.param({"rows": 4}, r"dimension of sample must be dynamic, got float32 \(4, 1, 4, 5\)", id="fixed-rows"),
        pytest.param(
            {"timestep_shape": []},
            r"first dimension of timestep must be dynamic, got float32 \(\)",
            id="timestep-without-rows",
        ),
        pytest.param({"output": "noise"}, "must have an output prediction, got noise", id="output-name"),
    ],
)
def test_a_network_of_another_interface_is_refused(tmp_path, backend, fault, message):
    refuse(tmp_path, backend, message, network=support.write_network(tmp_path / "network.onnx", **fault))


@pytest.mark.parametrize(
    ("info", "message"),
    [
        pytest.param(
            {"shape": (1, 8, 8)},
            r"a row of sample must have shape \(1, 8, 8\), got float32 \(\?, 1, 4, 5\)",
            id="shape",
        ),
        pytest.param(
            {"shape": (20,)}, r"a row of sample must have shape \(20,\), got float32 \(\?, 1, 4, 5\)", id="rank"
        ),
        pytest.param({"timestep_dtype": "int64"}, r"timestep must be int64, got float32 \(\?\)", id="timestep-dtype"),
        pytest.param({"cond": {}}, "inputs must be sample, timestep, got sample, timestep, class_labels", id="no-cond"),
        pytest.param({"cond": {"y": sf.CondInput(null=0)}}, "inputs must be sample, timestep, y, got ", id="cond-name"),
        pytest.param(
            {"cond": {"class_labels": sf.CondInput("int32", null=0)}},
            r"must be int32, got int64 \(\?\)",
            id="cond-dtype",
        ),
        pytest.param(
            {"cond": {"class_labels": sf.CondInput(shape=(2,), null=[0, 0])}},
            r"a row of class_labels must have shape \(2,\), got int64 \(\?\)",
            id="cond-shape",
        ),
    ],
)
def test_a_network_that_is_not_what_its_manifest_says_is_refused(tmp_path, backend, info, message):
    refuse(tmp_path, backend, message, **info)
