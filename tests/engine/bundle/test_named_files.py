"""Files that a graph names: those that the manifest lists reach the network, and no other file of the host does."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import support
from onnx import TensorProto, helper, numpy_helper

import stepfuse as sf
from stepfuse.backends.host import onnxruntime as host
from stepfuse.backends.host.config import Cpu
from stepfuse.backends.host.network import open_network

WEIGHTS = np.arange(support.ELEMENTS, dtype=np.float32)
_NODES = helper.make_node


def external(name, location, dims=(support.ELEMENTS,)):
    found = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    length = 4 * int(np.prod(dims))
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        found.external_data.add(key=key, value=value)
    return found


def constant(location, name="w"):
    return _NODES("Constant", [], [name], value=external(name, location))


def branch(nodes, initializers=()):
    return helper.make_graph(nodes, "b", [], [helper.make_tensor_value_info("o", 1, [support.ELEMENTS])], initializers)


def choice(body):
    return _NODES("If", ["true"], ["w"], then_branch=body, else_branch=body)


def function(location):
    opset = [helper.make_opsetid("", 18)]
    return helper.make_function("my", "F", [], ["o"], [constant(location, "o")], opset)


PLACES = {
    "initializer": lambda at: {"initializers": [external("w", at)]},
    "constant": lambda at: {"nodes": [constant(at)]},
    "subgraph": lambda at: {"nodes": [choice(branch([_NODES("Identity", ["i"], ["o"])], [external("i", at)]))]},
    "constant-of-subgraph": lambda at: {"nodes": [choice(branch([constant(at, "o")]))]},
    "function": lambda at: {"nodes": [_NODES("F", [], ["w"], domain="my")], "functions": [function(at)]},
    "fill-value": lambda at: {"nodes": [_NODES("ConstantOfShape", ["long"], ["w"], value=external("v", at, (1,)))]},
}


def network(nodes=(), initializers=(), functions=()):
    """A network whose prediction is the weights ``w``."""
    sample, *others = [
        helper.make_tensor_value_info("sample", 1, ["R", *support.SHAPE]),
        helper.make_tensor_value_info("timestep", 1, ["R"]),
        helper.make_tensor_value_info("class_labels", 7, ["R"]),
    ]
    values = {"shape": [1, *support.SHAPE], "long": [support.ELEMENTS], "zero": np.float32(0), "true": True}
    constants = [numpy_helper.from_array(np.array(value), name) for name, value in values.items()]
    tail = [
        _NODES("Reshape", ["w", "shape"], ["row"]),
        _NODES("Mul", ["sample", "zero"], ["none"]),
        _NODES("Add", ["none", "row"], ["prediction"]),
    ]
    output = helper.make_tensor_value_info("prediction", 1, ["R", *support.SHAPE])
    graph = helper.make_graph([*nodes, *tail], "g", [sample, *others], [output], [*constants, *initializers])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("my", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=list(functions))


@pytest.fixture
def folder(tmp_path):
    """A function that puts files into a bundle's folder, all of them listed."""
    path = support.write_tiny_bundle(tmp_path / "tiny").path

    def put(files):
        manifest = json.loads((path / "manifest.json").read_text())
        for name, content in files.items():
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_bytes(content)
            manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (path / "manifest.json").write_text(json.dumps(manifest))
        return path

    return put


def prediction(path):
    session = host.open_session(sf.Bundle.load(path).networks["denoiser.onnx"], threads=1)
    feeds = {"sample": np.zeros((1, *support.SHAPE)), "timestep": [0.0], "class_labels": [0]}
    types = {"sample": np.float32, "timestep": np.float32, "class_labels": np.int64}
    return session.run(None, {name: np.array(value, types[name]) for name, value in feeds.items()})[0].reshape(-1)


def test_listed_weights_reach_every_library(folder, backend):
    content = network(**PLACES["initializer"]("d/w.bin")).SerializeToString()
    bundle = sf.Bundle.load(folder({"denoiser.onnx": content, "d/w.bin": WEIGHTS.tobytes()}))
    found = open_network(bundle, Cpu(backend, threads=1)).backend(bundle.info, 3, deterministic=False)
    found.forward(3)
    np.testing.assert_array_equal(found.buffers.prediction.reshape(3, -1), np.stack([WEIGHTS] * 3))


def test_listed_weights_reach_the_network(folder):
    content = network(**PLACES["initializer"]("d/w.bin")).SerializeToString()
    path = folder({"denoiser.onnx": content, "d/w.bin": WEIGHTS.tobytes()})
    assert np.array_equal(prediction(path), WEIGHTS)


@pytest.mark.parametrize("place", [name for name in PLACES if name != "initializer"])
def test_weights_elsewhere_are_refused_since_onnx_runtime_would_open_them(folder, place):
    content = network(**PLACES[place]("d/w.bin")).SerializeToString()
    with pytest.raises(sf.BundleError, match=r"external data must be of the main graph's initializers, got 'd/w"):
        sf.Bundle.load(folder({"denoiser.onnx": content, "d/w.bin": WEIGHTS.tobytes()}))


LOCATIONS = ["../out/w.bin", "{out}", "/etc/passwd", "d/../../out/w.bin", "other.bin", "*/_ORT_MEM_ADDR_/*", "", "a\0b"]


@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_no_other_file_does(folder, tmp_path, place, location):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/w.bin").write_bytes(WEIGHTS.tobytes())
    location = location.format(out=tmp_path / "out/w.bin")
    path = folder({"denoiser.onnx": network(**place(location)).SerializeToString()})
    with pytest.raises(sf.BundleError, match=r"denoiser\.onnx.* external data must (lie in|be a file that|be of)"):
        sf.Bundle.load(path)
    with pytest.raises(sf.BundleError, match=r"external data|does not load"):
        host.open_session(path / "denoiser.onnx")


def split_location(model):
    """The key and the value of an entry, each written twice: the last counts."""
    entry = onnx.StringStringEntryProto
    parts = [entry(key="checksum"), entry(value="x"), entry(key="location"), entry(value="../out")]
    initializer = TensorProto(name="w", data_type=1, dims=[support.ELEMENTS], data_location=TensorProto.EXTERNAL)
    data = b"".join(part.SerializeToString() for part in parts)
    raw = initializer.SerializeToString() + bytes([13 << 3 | 2, len(data)]) + data
    graph = bytes([5 << 3 | 2, len(raw)]) + raw
    return model.SerializeToString() + bytes([7 << 3 | 2, len(graph)]) + graph


def test_a_location_in_pieces_and_a_graph_in_pieces_are_found(folder):
    """Protocol Buffers join what is there twice: the oracle is onnx's own parser."""
    content = split_location(network())
    parsed = onnx.load_from_string(content).graph.initializer[-1]
    assert [(one.key, one.value) for one in parsed.external_data] == [("location", "../out")]
    with pytest.raises(sf.BundleError, match=r"external data must lie in the model's folder, got '\.\./out'"):
        sf.Bundle.load(folder({"denoiser.onnx": content}))


def test_a_node_that_loads_a_compiled_engine_is_refused(folder):
    node = _NODES("EPContext", [], ["w"], domain="com.microsoft", embed_mode=0, ep_cache_context="../engine.bin")
    with pytest.raises(sf.BundleError, match="got EPContext, which loads a compiled engine"):
        sf.Bundle.load(folder({"denoiser.onnx": network(nodes=[node]).SerializeToString()}))


@pytest.mark.parametrize("operator", ["Sum", "Max", "Concat"])
def test_an_operator_of_all_its_inputs_has_them_all(folder, operator):
    """ONNX allows an empty name for optional inputs alone; ONNX Runtime 1.32 loads this and crashes when it runs."""
    node = _NODES(operator, ["sample", ""], ["w"], **({"axis": 0} if operator == "Concat" else {}))
    with pytest.raises(sf.BundleError, match=f"all inputs of {operator} must be there, got one without a name"):
        sf.Bundle.load(folder({"denoiser.onnx": network(nodes=[node]).SerializeToString()}))


def test_a_graph_that_is_cut_or_nests_without_end_is_refused(folder):
    content = network(**PLACES["subgraph"]("w.bin")).SerializeToString()
    for cut in range(len(content) // 2, len(content) - 1, 97):
        if b"location" in content[:cut]:
            with pytest.raises(sf.BundleError, match="must be an ONNX file"):
                sf.Bundle.load(folder({"denoiser.onnx": content[:cut], "w.bin": WEIGHTS.tobytes()}))
    nested = b""
    for _ in range(60):  # a graph in an attribute of a node, again and again; protobuf's readers stop at 100 messages
        for number in (6, 5, 1):
            length, size = bytearray(), len(nested)
            while size > 0x7F:
                length.append(size & 0x7F | 0x80)
                size >>= 7
            nested = bytes([number << 3 | 2, *length, size]) + nested
    with pytest.raises(sf.BundleError, match="must be an ONNX file"):
        sf.Bundle.load(folder({"denoiser.onnx": b"\x3a\x08location" + nested}))


def test_before_1_24_external_data_is_behind_links_to_the_open_files(folder, monkeypatch):
    content = network(**PLACES["initializer"]("d/w.bin")).SerializeToString()
    path = folder({"denoiser.onnx": content, "d/w.bin": WEIGHTS.tobytes()})
    found = {}

    def read(model, *arguments, **options):
        found.update({name: Path(model).parent.joinpath(name).read_bytes() for name in ("denoiser.onnx", "d/w.bin")})

    name = "add_external_initializers_from_files_in_memory"
    monkeypatch.delattr(host.ort.SessionOptions, name, raising=False)
    monkeypatch.setattr(host.ort, "InferenceSession", read)
    bundle = sf.Bundle.load(path)
    (path / "d/w.bin").unlink()
    host.open_session(bundle.networks["denoiser.onnx"])
    assert found == {"denoiser.onnx": content, "d/w.bin": WEIGHTS.tobytes()}


@pytest.mark.parametrize("name", ["denoiser.onnx", "w.bin"])
@pytest.mark.parametrize("how", ["renamed", "written"])
def test_what_was_hashed_is_what_is_loaded(folder, monkeypatch, name, how):
    """A file that changes after its checksum: another one at its name changes nothing, other content is found out."""
    place = PLACES["initializer"]
    path = folder({"denoiser.onnx": network(**place("w.bin")).SerializeToString(), "w.bin": WEIGHTS.tobytes()})
    honest, session, other = (path / name).read_bytes(), host.ort.InferenceSession, path.parent / "other"
    other.write_bytes(honest[:-8] + bytes(8))

    def swap_and_load(*arguments, **options):
        if how == "renamed":
            other.replace(path / name)
        else:
            (path / name).write_bytes(other.read_bytes())
        return session(*arguments, **options)

    monkeypatch.setattr(host.ort, "InferenceSession", swap_and_load)
    if how == "renamed":
        assert np.array_equal(prediction(path), WEIGHTS)
    else:
        with pytest.raises(sf.BundleError, match=r"sha256 must be|does not load"):
            prediction(path)


def to_hub(path, revision="0123abc"):
    """A folder as the hub's cache keeps it: links to files that are named by their checksums."""
    hub = path.parent / "models--me--tiny"
    snapshot = hub / "snapshots" / revision
    (hub / "blobs").mkdir(parents=True)
    for file in [one for one in path.rglob("*") if one.is_file()]:
        link = snapshot / file.relative_to(path)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = hub / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(blob)
        link.symlink_to(Path(*[".."] * len(link.relative_to(hub).parts[:-1])) / "blobs" / blob.name)
    return snapshot


@pytest.mark.parametrize("verify", [True, False])
def test_a_bundle_behind_the_links_of_the_hubs_cache_is_loaded(folder, verify):
    content = network(**PLACES["initializer"]("d/w.bin")).SerializeToString()
    snapshot = to_hub(folder({"denoiser.onnx": content, "d/w.bin": WEIGHTS.tobytes()}))
    assert np.array_equal(prediction(snapshot), WEIGHTS)
    sf.Engine.load(snapshot, verify=verify, threads=1).close()


def test_other_links_out_of_a_snapshot_are_refused(folder):
    snapshot = to_hub(folder({}))
    (snapshot / "denoiser.onnx").unlink()
    secret = support.write_network(snapshot.parents[2] / "secret.onnx")
    (snapshot / "denoiser.onnx").symlink_to(secret)
    with pytest.raises(sf.BundleError, match=r"must stay inside the folder, but leads to .*secret\.onnx"):
        sf.Bundle.load(snapshot)


def test_a_folder_that_cannot_be_listed_is_refused(folder, monkeypatch):
    path, scandir = folder({"d/w.bin": b"weights"}), os.scandir

    def refuse(handle):
        if Path(f"/proc/self/fd/{handle}").resolve().name == "d":  # root may list any folder
            raise PermissionError(13, "Permission denied")
        return scandir(handle)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(sf.BundleError, match=r"tiny/d must be a folder that can be listed: .*Permission denied"):
        sf.Bundle.load(path)


def test_a_link_to_a_folder_is_refused(folder, tmp_path):
    path = folder({})
    (tmp_path / "elsewhere").mkdir()
    (path / "d").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(sf.BundleError, match="tiny/d must be a folder itself, not a link to one"):
        sf.Bundle.load(path)


def test_a_pipe_is_no_file_and_is_not_waited_for(folder):
    path = folder({"notes.txt": b""})
    (path / "notes.txt").unlink()
    os.mkfifo(path / "notes.txt")
    with pytest.raises(sf.BundleError, match=r"notes\.txt must be a regular file"):
        sf.Bundle.load(path)
