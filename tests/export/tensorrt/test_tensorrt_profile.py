"""Profiles, targets and options: what they make of shapes, and what they refuse."""

import pytest

from stepfuse.errors import PlanError
from stepfuse.export.tensorrt import Options, Profile, Target

LATENT = (-1, 4, -1, -1)
SIZES = ((256, 256), (768, 512), (1024, 1024))  # (width, height)


@pytest.mark.parametrize(
    ("name", "dims", "found"),
    [
        pytest.param("sample", LATENT, ((1, 4, 32, 32), (2, 4, 64, 96), (8, 4, 128, 128)), id="latents"),
        pytest.param("image", (-1, 3, -1, -1), ((1, 3, 256, 256), (2, 3, 512, 768), (8, 3, 1024, 1024)), id="pixels"),
        pytest.param("timestep", (-1,), ((1,), (2,), (8,)), id="a-number-a-row"),
        pytest.param("encoder_hidden_states", (-1, 77, 768), ((1, 77, 768), (2, 77, 768), (8, 77, 768)), id="text"),
        pytest.param("control", (-1, 320, -1, -1), ((1, 320, 32, 32), (2, 320, 64, 96), (8, 320, 128, 128)), id="4-D"),
        pytest.param("mask", (-1, 4, 5, 6), ((1, 4, 5, 6), (2, 4, 5, 6), (8, 4, 5, 6)), id="4-D-without-sides"),
        pytest.param("scale", (), ((), (), ()), id="scalar"),
        pytest.param("sample", (1, 4, -1, -1), ((1, 4, 32, 32), (1, 4, 64, 96), (1, 4, 128, 128)), id="one-row"),
    ],
)
def test_rows_and_sizes_give_the_shapes_of_an_input(name, dims, found):
    assert Profile(rows=(1, 2, 8), sizes=SIZES).shapes_of(name, dims, pixels_per_cell=8) == found


def test_shapes_that_are_given_go_first():
    three = ((1, 10, 64), (2, 77, 64), (4, 512, 64))
    profile = Profile(rows=(1, 2, 4), shapes={"text": three})
    assert profile.shapes_of("text", (-1, -1, 64), pixels_per_cell=8) == three


@pytest.mark.parametrize(
    ("profile", "name", "dims", "message"),
    [
        (Profile(), "sample", LATENT, r"sample: shape \(\?, 4, \?, \?\) is dynamic beyond its rows: give sizes"),
        (Profile(), "text", (-1, -1, 64), r"text: .* give shapes=\{'text': \(min, opt, max\)\}"),
        (Profile(sizes=SIZES), "sample", (-1, 4, 64, 64), r"takes shape \(\?, 4, 64, 64\), got \(1, 4, 32, 32\)"),
        (Profile(sizes=((36, 36),) * 3), "sample", LATENT, "sizes must be multiples of 8 pixels, got 36"),
        (Profile(shapes={"text": ((1, 2),) * 3}), "text", (-1, 77, 64), r"takes shape \(\?, 77, 64\), got \(1, 2\)"),
    ],
)
def test_a_shape_that_the_network_does_not_take_is_refused(profile, name, dims, message):
    with pytest.raises(PlanError, match=message):
        profile.shapes_of(name, dims, pixels_per_cell=8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": (2, 1, 8)}, r"rows must not fall from min to opt to max, got 2,1,8"),
        ({"rows": (0, 1, 8)}, r"rows must be whole numbers from 1 on, got 0,1,8"),
        ({"rows": (1, 8)}, r"rows must be three"),
        ({"rows": (1.0, 2, 3)}, r"rows must be whole numbers from 1 on"),
        ({"rows": (1, True, 3)}, r"rows must be whole numbers from 1 on"),
        ({"sizes": ((8, 8), (8, 8), (8, 4))}, r"sizes must not fall from min to opt to max, got 8x8,8x8,8x4"),
        ({"sizes": ((8,), (8,), (8,))}, r"sizes must be three"),
        ({"shapes": {"text": ((1, 2), (1, 2, 3), (1, 2))}}, r"shapes of 'text' must be three"),
    ],
)
def test_a_profile_ascends(arguments, message):
    with pytest.raises(ValueError, match=message):
        Profile(**arguments)


def test_a_profile_is_read_from_text():
    assert Profile.of("8") == Profile(rows=(8, 8, 8))
    assert Profile.of("1,2,8", "64x32") == Profile(rows=(1, 2, 8), sizes=((64, 32),) * 3)
    assert Profile.of("1,2,8", "256x256,768x512,1024x1024") == Profile(rows=(1, 2, 8), sizes=SIZES)


@pytest.mark.parametrize(("rows", "sizes"), [("", None), ("1,2", None), ("-1", None), ("1", "64"), ("1", "64x64,8x8")])
def test_a_text_that_is_no_profile_is_refused(rows, sizes):
    with pytest.raises(ValueError, match=r"(rows|sizes) must be one"):
        Profile.of(rows, sizes)


def test_a_target_sorts_its_compute_capabilities_as_numbers():
    assert Target(("12.0", "8.9", "8.9")) == Target(("8.9", "12.0"))


@pytest.mark.parametrize("given", [(), ("89",), ("sm_89",), (8.9,), "8.9"])
def test_a_compute_capability_is_a_text_with_a_dot(given):
    with pytest.raises(ValueError, match=r"compute_capabilities must be texts such as '8\.9'"):
        Target(given)


def test_a_gpu_has_one_compute_capability_and_a_driver():
    with pytest.raises(ValueError, match="a GPU has a name, a driver and one compute capability"):
        Target(("8.9",), gpu="L4")
    with pytest.raises(ValueError, match="a GPU has a name, a driver and one compute capability"):
        Target(("8.9", "12.0"), gpu="L4", driver="580.95")


def test_ahead_of_time_covers_a_gpu_and_a_gpu_only_itself():
    gpu = Target(("8.9",), gpu="L4", driver="580.95")
    ahead = Target(("8.9", "12.0"))
    assert ahead.covers(gpu)
    assert ahead.covers(Target(("12.0",)))
    assert not ahead.covers(Target(("8.6",)))
    assert not gpu.covers(ahead)
    assert not gpu.covers(Target(("8.9",)))
    assert not gpu.covers(Target(("8.9",), gpu="L4", driver="581.00"))
    assert not gpu.covers(Target(("8.9",), gpu="L40S", driver="580.95"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hardware": "turing"}, "hardware must be one of ampere_plus, same_compute_capability or None, got 'turing'"),
        ({"workspace": 0}, "workspace must be at least 1 byte, got 0"),
        ({"level": 6}, "level must be between 0 and 5, got 6"),
    ],
)
def test_an_option_out_of_bounds_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Options(**arguments)
