"""Conditioning: from what a caller says to a value a sample."""

import numpy as np
import pytest

import stepfuse as sf
from stepfuse.requests.conditioning import cond_per_sample

CLASS = sf.CondInput(dtype="int64", null=3, names=("boot", "bag", "coat"))
MANY = sf.CondInput(dtype="int64", null=1000, names=tuple(map(str, range(1000))))
GARMENTS = sf.CondInput(dtype="int64", null=4, names=("t-shirt", "ankle boot", "C++", "C"))
INDEX = sf.CondInput(dtype="int32", null=-1)
FLAG = sf.CondInput(dtype="bool", null=False)
TEXT = sf.CondInput(dtype="float32", shape=(4, 8), null=np.zeros((4, 8)))
HALF = sf.CondInput(dtype="float16", shape=(2,), null=[0.0, 0.0])
TOKENS = sf.CondInput(dtype="int64", shape=(3,), null=[0, 0, 0])

ONE = np.arange(32, dtype=np.float32).reshape(4, 8)


@pytest.mark.parametrize(
    ("spec", "given", "value"),
    [
        pytest.param(CLASS, "coat", 2, id="class-name"),
        pytest.param(CLASS, 1, 1, id="class-index"),
        pytest.param(CLASS, np.uint8(1), 1, id="other-integer"),
        pytest.param(CLASS, np.array(1), 1, id="array-of-no-dimension"),
        pytest.param(GARMENTS, "ankle boot", 1, id="name-of-two-words"),
        *(pytest.param(GARMENTS, one, 1, id=one) for one in ("Ankle Boot", "ankle-boot", "ANKLE_BOOT", " ankle  boot")),
        pytest.param(GARMENTS, "T shirt", 0, id="T shirt"),
        pytest.param(CLASS, 3, 3, id="null-itself"),
        pytest.param(CLASS, None, 3, id="none"),
        pytest.param(INDEX, 7, 7, id="index-without-names"),
        pytest.param(FLAG, True, True, id="bool"),
        pytest.param(TEXT, ONE, ONE, id="embedding"),
        pytest.param(TEXT, ONE.astype(np.float64).tolist(), ONE, id="nested-list"),
        pytest.param(TEXT, np.asfortranarray(ONE), ONE, id="fortran-order"),
        pytest.param(TEXT, None, np.zeros((4, 8)), id="null-array"),
        pytest.param(HALF, [-np.inf, 0.1], np.float16([-np.inf, 0.1]), id="rounded-and-infinite"),
        pytest.param(HALF, [1, 2], [1.0, 2.0], id="integers-for-a-float-input"),
        pytest.param(TOKENS, [1, 2, 3], [1, 2, 3], id="tokens"),
    ],
)
def test_a_value_has_the_input_s_dtype_shape_and_layout(spec, given, value):
    found = spec.value("y", given)
    assert (found.dtype, found.shape, found.flags.c_contiguous) == (spec.dtype, spec.shape, True)
    np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize(
    ("spec", "given", "error", "message"),
    [
        pytest.param(CLASS, "hat", ValueError, "y must be one of boot, bag, coat, got 'hat'", id="unknown-name"),
        pytest.param(GARMENTS, "c", ValueError, "y must be one of t-shirt, .*, got 'c'", id="two-names-alike"),
        pytest.param(GARMENTS, "?!", ValueError, "y must be one of t-shirt, .*, got '\\?!'", id="no-letter"),
        pytest.param(MANY, "hat", ValueError, "y must be one of 0, .*, 19 and 980 more, got 'hat'", id="many-names"),
        pytest.param(INDEX, "bag", ValueError, "y has no class names, got 'bag'", id="name-without-names"),
        pytest.param(CLASS, 4, ValueError, "y must be a class from 0 to 2, got 4", id="above-the-classes"),
        pytest.param(CLASS, [1], ValueError, r"y must have shape \(\), got \(1,\)", id="shape"),
        pytest.param(TEXT, ONE.T, ValueError, r"y must have shape \(4, 8\), got \(8, 4\)", id="transposed"),
        pytest.param(CLASS, 1.0, TypeError, "y must be int64, got 1.0 of type float64", id="float-for-integer"),
        pytest.param(HALF, [1j, 0], TypeError, r"y must be float16, got \[1j, 0\] of type complex128", id="complex"),
        pytest.param(CLASS, object(), TypeError, "y must be int64, got <object .* of type object", id="object"),
        pytest.param(INDEX, 2**31, ValueError, "y must fit int32, got 2147483648", id="beyond-int32"),
        pytest.param(FLAG, 2, ValueError, "y must fit bool, got 2", id="beyond-bool"),
        pytest.param(HALF, [1.0, 1e5], ValueError, r"y must fit float16, got \[1.0, 100000.0\]", id="float16"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(spec, given, error, message):
    with pytest.raises(error, match=message):
        spec.value("y", given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"dtype": "string", "null": 0}, "dtype must be one of float32, .*, got 'string'", id="dtype"),
        pytest.param({"shape": (2,), "null": [0] * 3}, r"null must have shape \(2,\), got \(3,\)", id="null-shape"),
    ],
)
def test_an_input_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sf.CondInput(**arguments)


THREE = [ONE, ONE + 1, ONE + 2]


@pytest.mark.parametrize(
    ("spec", "given", "expected"),
    [
        pytest.param(CLASS, "bag", [1, 1, 1], id="one-name-for-all"),
        pytest.param(CLASS, ["bag", 2, None], [1, 2, 3], id="names-indices-and-none"),
        pytest.param(CLASS, (0, 1, 2), [0, 1, 2], id="tuple"),
        pytest.param(CLASS, np.array([0, 1, 2]), [0, 1, 2], id="array"),
        pytest.param(CLASS, range(3), [0, 1, 2], id="range"),
        pytest.param(TEXT, ONE, [ONE, ONE, ONE], id="one-embedding-for-all"),
        pytest.param(TEXT, np.stack(THREE), THREE, id="embeddings-in-an-array"),
        pytest.param(TEXT, THREE, THREE, id="embeddings-in-a-list"),
        pytest.param(TEXT, np.stack(THREE).tolist(), THREE, id="embeddings-as-nested-lists"),
        pytest.param(TEXT, [None, ONE, None], [0 * ONE, ONE, 0 * ONE], id="embeddings-and-none"),
        pytest.param(TOKENS, [1, 2, 3], [[1, 2, 3]] * 3, id="as-many-tokens-as-samples"),
    ],
)
def test_one_value_for_all_or_one_each(spec, given, expected):
    np.testing.assert_array_equal(spec.values("y", given, 3), expected)


@pytest.mark.parametrize(
    ("spec", "given", "got"),
    [
        pytest.param(CLASS, [1, 2], 2, id="list"),
        pytest.param(TEXT, np.stack(THREE + THREE), 6, id="array"),
        pytest.param(CLASS, [], 0, id="empty"),
    ],
)
def test_another_number_of_values_than_samples_is_refused(spec, given, got):
    with pytest.raises(ValueError, match=f"y must be one value, or one for each of the 3 samples, got {got}"):
        spec.values("y", given, 3)


def test_a_sample_is_told_something_if_any_input_differs_from_its_null():
    inputs = {"y": CLASS, "text": TEXT}
    found = cond_per_sample(inputs, {"text": [None, ONE, None], "y": [None, None, 2]}, 3)
    assert found[0] is None
    for values, expected in zip(found[1:], [(3, ONE), (2, 0 * ONE)], strict=True):
        for value, right in zip(values, expected, strict=True):  # in the inputs' order, not the dict's
            np.testing.assert_array_equal(value, right)


@pytest.mark.parametrize("given", [None, {}, {"y": None}, {"y": 3, "text": np.zeros((4, 8))}])
def test_null_everywhere_is_to_be_told_nothing(given):
    assert cond_per_sample({"y": CLASS, "text": TEXT}, given, 2) == [None, None]


@pytest.mark.parametrize(
    ("inputs", "given", "error", "message"),
    [
        pytest.param({}, 3, ValueError, "this model takes no conditioning, got 3", id="none-taken"),
        pytest.param({"y": CLASS}, {"z": 1}, ValueError, "cond must have names among y, got z", id="unknown-input"),
        pytest.param({"y": CLASS}, {1: 1}, ValueError, "cond must have names among y, got 1", id="name-no-text"),
        pytest.param({"y": CLASS, "z": CLASS}, 1, TypeError, "cond must be a dict with any of y, z, got", id="bare"),
    ],
)
def test_inputs_are_named(inputs, given, error, message):
    with pytest.raises(error, match=message):
        cond_per_sample(inputs, given, 2)


def test_a_null_number_fills_the_shape():
    spec = sf.CondInput("float32", (4, 8), null=0.5)
    np.testing.assert_array_equal(spec.value("y", None), np.full((4, 8), 0.5, np.float32))
