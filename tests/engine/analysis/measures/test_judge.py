"""The judge: what it returns against torch, what it stores against numpy, and what it refuses."""

import hashlib
import json

import numpy as np
import onnx
import pytest
import scipy.linalg
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

import stepfuse as sf
from stepfuse.analysis import Judge, Statistics, frechet_distance, write_judge

#: Features and logits against torch, relative to the largest: float32 sums of up to 1152 terms in another order.
FLOAT32_SUMS = 1e-5


@pytest.fixture(scope="module")
def fashion():
    return Judge.load("fashion")


def by_torch(images):
    """The shipped network written out: logits and features, from the weights in the file."""
    file = sf.analysis.measures.judge._JUDGES / "fashion" / "judge.onnx"
    w = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in onnx.load(file).graph.initializer}
    x = torch.as_tensor(images)
    for layer in ("features.0", "features.3", "features.6"):
        x = functional.max_pool2d(functional.conv2d(x, w[f"{layer}.weight"], w[f"{layer}.bias"], padding=1).relu(), 2)
    features = functional.linear(x.flatten(1), w["features.10.weight"], w["features.10.bias"]).relu()
    return functional.linear(features, w["logits.weight"], w["logits.bias"]).numpy(), features.numpy()


@pytest.mark.parametrize("rows", [1, 255, 256, 257], ids=["one", "under a batch", "a batch", "over a batch"])
def test_features_and_classes_are_those_that_torch_computes(fashion, rows):
    images = (
        np.resize(fashion.real_images, (rows, 1, 28, 28))
        * np.linspace(0.3, 1.0, rows, dtype=np.float32)[:, None, None, None]
    )
    logits, features = by_torch(images)
    got = fashion.features(images)
    assert got.dtype == np.float32
    assert got.shape == (rows, fashion.feature_count) == (rows, 64)
    np.testing.assert_allclose(got, features, rtol=0, atol=FLOAT32_SUMS * features.max())
    two_best = np.sort(logits, axis=1)[:, -2:]
    clear = two_best[:, 1] - two_best[:, 0] > 2 * FLOAT32_SUMS * np.abs(logits).max()
    classes = fashion.classify(images)
    assert classes.dtype == np.int64
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(classes[clear], logits.argmax(1)[clear])


def test_the_distance_is_scipys_to_the_reference(fashion):
    rows = by_torch(fashion.real_images)[1].astype(np.float64)
    mean, cov, reference = rows.mean(0), np.cov(rows.T), fashion.reference
    root = np.sqrt(scipy.linalg.eigvals(cov @ reference.cov).real.clip(min=0)).sum()  # the trace of sqrtm(cov @ cov)
    expected = np.sum((mean - reference.mean) ** 2) + np.trace(cov) + np.trace(reference.cov) - 2 * root
    assert fashion.distance(fashion.real_images) == pytest.approx(expected, rel=1e-4)


def test_the_distance_grows_with_what_is_done_to_the_images(fashion):
    noise = np.random.default_rng(0).standard_normal(fashion.real_images.shape).astype(np.float32)
    distances = [fashion.distance(fashion.real_images + level * noise) for level in (0.0, 0.2, 0.5, 1.0)]
    assert distances == sorted(distances)
    assert distances[-1] > 10 * distances[0]


def test_the_real_images_come_ten_a_class_and_are_mostly_named_right(fashion):
    assert fashion.real_images.shape == (100, 1, 28, 28)
    assert fashion.real_images.dtype == np.float32
    assert (fashion.real_images.min(), fashion.real_images.max()) == (-1.0, 1.0)
    np.testing.assert_array_equal(fashion.real_labels, np.repeat(np.arange(10), 10))
    assert fashion.real_accuracy > 0.93
    assert fashion.accuracy(fashion.real_images, fashion.real_labels) == pytest.approx(fashion.real_accuracy, abs=0.06)
    assert fashion.reference.count == 10_000


@pytest.mark.parametrize("name", sf.embedded_models())
def test_every_embedded_model_has_a_judge_with_its_classes(name):
    judge, info = Judge.for_model(name), sf.Bundle.load(name).info
    assert judge.shape == info.shape
    assert judge.class_names == tuple(info.cond["class_labels"].names)


def test_other_models_have_none():
    assert Judge.for_model("tiny") is None


def test_samples_of_the_embedded_model_are_named_as_asked_for(fashion):
    labels = np.arange(20) % 10
    with sf.Engine.load("fashion-8step") as engine:
        images = engine.sample(len(labels), cond=labels, seed=0)
    assert fashion.accuracy(images, labels) >= 0.9
    assert fashion.accuracy(images, (labels + 1) % 10) <= 0.1


def test_the_shipped_files_are_small():
    folder = sf.analysis.measures.judge._JUDGES / "fashion"
    assert (folder / "judge.onnx").stat().st_size < 1_000_000
    assert {file.name for file in folder.iterdir()} == {"judge.onnx", "manifest.json", "reference.npz"}


def bad_images():
    good = np.zeros((3, 1, 28, 28), np.float32)
    spoiled = good.copy()
    spoiled[1, 0, 5, 5] = np.nan
    shape = r"images must have shape \(n, 1, 28, 28\), got "
    return [
        (good[0], shape + r"\(1, 28, 28\)"),
        (good[:, 0], shape + r"\(3, 28, 28\)"),
        (good[..., :27], shape + r"\(3, 1, 28, 27\)"),
        (good[:0], shape + r"\(0, 1, 28, 28\)"),
        (good.astype(np.uint8), r"images must be floating-point numbers in \[-1, 1\], got uint8"),
        (good.astype(complex), "images must be floating-point numbers .* got complex128"),
        (spoiled, "images must be finite, got NaN or infinity in 1, first in number 1"),
        (np.full((2, 1, 28, 28), 1e300), "images must be finite, got NaN or infinity in 2, first in number 0"),
    ]


@pytest.mark.parametrize(("images", "message"), bad_images())
@pytest.mark.parametrize("method", ["features", "classify", "distance"])
def test_bad_images_are_refused(fashion, method, images, message):
    with pytest.raises(ValueError, match=message):
        getattr(fashion, method)(images)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], r"labels must be integers of shape \(3,\), got int64 \(2,\)"),
        ([0.0, 1.0, 2.0], r"labels must be integers of shape \(3,\), got float64 \(3,\)"),
        ([0, 1, 10], "labels must be between 0 and 9, got 0 to 10"),
        ([-1, 1, 9], "labels must be between 0 and 9, got -1 to 9"),
    ],
)
def test_bad_labels_are_refused(fashion, labels, message):
    with pytest.raises(ValueError, match=message):
        fashion.accuracy(fashion.real_images[:3], labels)


def test_fewer_images_than_features_have_no_distance(fashion):
    with pytest.raises(ValueError, match="covariance is singular: got 64 images of 64 features"):
        fashion.distance(fashion.real_images[:64])
    assert fashion.distance(fashion.real_images[:65]) > 0


# A judge of one's own: 2 x 2 images, the features are three sums of pixels, the class is the larger of the first two.
SUMS = np.float32([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]])
NAMES = ("upper", "lower")


def write_network(path, *, rows="n", outputs=("logits", "features"), classes=2):
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "sums"], [outputs[1]]),
        helper.make_node("Slice", [outputs[1], "first", "last", "axis"], [outputs[0]]),
    ]
    constants = {"sums": SUMS.T.copy(), "first": np.int64([0]), "last": np.int64([classes]), "axis": np.int64([1])}
    shapes = {"images": [rows, 1, 2, 2], outputs[0]: [rows, classes], outputs[1]: [rows, 3]}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [values.pop("images")],
        list(values.values()),
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


IMAGES = np.random.default_rng(0).integers(0, 256, (40, 1, 2, 2), dtype=np.uint8)
LABELS = np.arange(40) % 2


def write(folder, **changes):
    arguments = {"network": None, "class_names": NAMES, "images": IMAGES, "labels": LABELS, "kept": 4, **changes}
    arguments["network"] = arguments["network"] or write_network(folder.with_suffix(".onnx"))
    return write_judge(folder, name="tiny", provenance="made by a test", licence="Apache-2.0", **arguments)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_judge_of_ones_own_is_what_its_network_and_images_are(folder):
    judge = Judge.load(folder)
    rows = (IMAGES.reshape(40, 4) / 127.5 - 1) @ SUMS.T
    assert (judge.name, judge.class_names, judge.shape, judge.feature_count) == ("tiny", NAMES, (1, 2, 2), 3)
    assert judge.real_accuracy == np.mean(rows[:, :2].argmax(1) == LABELS)
    np.testing.assert_allclose(judge.reference.mean, rows.mean(0), atol=1e-6)
    np.testing.assert_allclose(judge.reference.cov, np.cov(rows.T), atol=1e-6)
    assert judge.reference.count == 40
    np.testing.assert_allclose(judge.real_images, IMAGES[[0, 2, 4, 6, 1, 3, 5, 7]] / 127.5 - 1, atol=1e-7)
    np.testing.assert_array_equal(judge.real_labels, [0] * 4 + [1] * 4)
    images = np.random.default_rng(1).uniform(-1, 1, (50, 1, 2, 2)).astype(np.float32)
    np.testing.assert_allclose(judge.features(images), images.reshape(50, 4) @ SUMS.T, atol=1e-6)
    assert judge.distance(images) == frechet_distance(Statistics.of(judge.features(images)), judge.reference)


def test_a_judge_is_replaced_only_if_asked_for(folder):
    with pytest.raises(sf.BundleError, match="tiny exists already: pass overwrite=True"):
        write(folder)
    assert (
        write(folder, kept=1, overwrite=True).real_images.shape == Judge.load(folder).real_images.shape == (2, 1, 2, 2)
    )
    assert {path.name for path in folder.parent.iterdir()} == {"tiny", "tiny.onnx"}
    (folder.parent / "other").mkdir()
    with pytest.raises(sf.BundleError, match=r"other has no manifest\.json: only a folder with one is replaced"):
        write(folder.parent / "other", overwrite=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES / 255}, r"images must be uint8 \(n, \*shape\) .* got float64"),
        ({"labels": LABELS[:9]}, r"got uint8 \(40, 1, 2, 2\) and int64 \(9,\)"),
        ({"labels": LABELS / 1}, r"and float64 \(40,\)"),
        ({"kept": 21}, r"at least kept = 21 images, and no image another class, got \[20, 20\]"),
        ({"kept": 0}, "at least kept = 0 images"),
        ({"labels": LABELS * 2}, r"no image another class, got \[20, 0\]"),
        ({"images": np.zeros_like(IMAGES)}, "features must differ between images, got the same row 40 times"),
        ({"images": IMAGES[:3], "labels": LABELS[:3], "kept": 1}, "got 3 images of 3 features"),
    ],
)
def test_a_bad_judge_is_not_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "tiny", **changes)
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"rows": 4}, r"images must be float32 \(n, 1, 2, 2\), got \(4, 1, 2, 2\)"),
        (
            {"outputs": ("scores", "features")},
            "must have input images, outputs logits and features, got images, scores",
        ),
        ({"classes": 1}, r"logits must be float32 \(n, 2\), got \('n', 1\)"),
    ],
    ids=["fixed rows", "wrong name", "too few classes"],
)
def test_a_network_that_is_no_judges_is_refused(tmp_path, network, message):
    with pytest.raises(sf.BundleError, match=message):
        write(tmp_path / "tiny", network=write_network(tmp_path / "odd.onnx", **network))


def edit(folder, **entries):
    """Changes entries of the manifest; None takes one out."""
    file = folder / "manifest.json"
    manifest = {**json.loads(file.read_text()), **entries}
    file.write_text(json.dumps({name: value for name, value in manifest.items() if value is not None}))


def replace(folder, name, content):
    """Replaces a file and lists it as it then is."""
    (folder / name).write_bytes(content)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    edit(folder, files={**files, name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}})


def rewrite_reference(folder, **entries):
    with np.load(folder / "reference.npz") as file:
        arrays = {**file, **entries}
    np.savez(folder / "new.npz", **{name: array for name, array in arrays.items() if array is not None})
    replace(folder, "reference.npz", (folder / "new.npz").read_bytes())
    (folder / "new.npz").unlink()


def flip_a_bit(folder):
    content = bytearray((folder / "judge.onnx").read_bytes())
    content[60] ^= 1
    (folder / "judge.onnx").write_bytes(content)


def truncate(folder):
    (folder / "reference.npz").write_bytes((folder / "reference.npz").read_bytes()[:-1])


def unlist(folder):
    (folder / "judge.onnx").unlink()
    edit(
        folder,
        files={
            k: v for k, v in json.loads((folder / "manifest.json").read_text())["files"].items() if k != "judge.onnx"
        },
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, r"judge\.onnx: sha256 must be .*: the file was changed"),
        (truncate, r"reference\.npz: size must be \d+ bytes, got \d+"),
        (unlist, r"files must list judge\.onnx, got \['reference\.npz'\]"),
        (lambda folder: (folder / "judge.onnx").unlink(), r"judge\.onnx is listed .*: it is missing"),
        (lambda folder: (folder / "extra").write_text(""), r"every file must be listed in manifest\.json, got extra"),
        (lambda folder: edit(folder, format_version=2), "format_version must be 1, got 2"),
        (lambda folder: edit(folder, data_range=[0, 1]), r"data_range must be \[-1, 1\], got \[0, 1\]"),
        (lambda folder: edit(folder, real_accuracy=None), "real_accuracy must be a float, got None"),
        (
            lambda folder: edit(folder, class_names=["upper"]),
            r"reference\.npz .* labels must be between 0 and 0, got 0 to 1",
        ),
        (lambda folder: edit(folder, shape=[1, 2, 3]), r"reference\.npz .* images must be uint8 \(n, 1, 2, 3\)"),
        (lambda folder: replace(folder, "reference.npz", b"PK no zip"), r"reference\.npz does not hold"),
        (lambda folder: rewrite_reference(folder, cov=-np.eye(3)), "cov must have no negative eigenvalue, got -1"),
        (lambda folder: rewrite_reference(folder, mean=None), r"it must hold .*mean"),
        (
            lambda folder: rewrite_reference(folder, mean=np.zeros(2), cov=np.eye(2)),
            r"features must be float32 \(n, 2\)",
        ),
        (lambda folder: rewrite_reference(folder, images=np.array([{}])), "must be a plain array of numbers or text"),
        (lambda folder: replace(folder, "judge.onnx", b"weights"), r"judge\.onnx must be an ONNX file"),
    ],
)
def test_a_judge_that_is_not_as_its_manifest_says_is_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(sf.BundleError, match=message):
        Judge.load(folder)


def test_a_judge_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(
        sf.BundleError, match=r"is neither a judge of this package \(fashion\) nor a folder with a manifest"
    ):
        Judge.load(tmp_path)


def test_what_a_sampler_overshoots_is_judged_as_the_picture_would_be():
    judge = Judge.load("fashion")
    over = judge.real_images * np.float32(1.5)
    np.testing.assert_array_equal(judge.features(over), judge.features(np.clip(over, -1, 1)))
    assert not np.array_equal(judge.features(over), judge.features(judge.real_images))
