"""Image to image and inpainting against the loops of diffusers' pipelines: same images, masks, noise and model."""

import dataclasses

import numpy as np
import peers
import pytest
import support

import stepfuse as sf
from stepfuse.requests.editing import Edit

RNG = np.random.default_rng(3)
IMAGES = RNG.uniform(-1, 1, (peers.BATCH, peers.SIZE)).astype(np.float32)
MASK = (RNG.uniform(size=peers.SIZE) < 0.5).astype(np.float32)
SOFT = RNG.uniform(size=peers.SIZE).astype(np.float32)
STEPS = 10

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning:diffusers")

needs_diffusers = pytest.mark.skipif(not support.installed("diffusers"), reason="diffusers needs Python 3.11")
# In the middle of a step diffusers noises what is known to the level of the step's end, at which the state is not yet.
NOISED_TO_ANOTHER_LEVEL = {"dpmpp_sde", "kdpm2"}


def noised(scheduler, images, t, index):
    """diffusers' own noising, of what its pipelines call it with; flow schedulers name it otherwise."""
    import torch

    clean, noise = torch.from_numpy(images).double(), torch.from_numpy(peers.NOISE).double()
    if hasattr(scheduler, "scale_noise"):
        scheduler.set_begin_index(index)
        found = scheduler.scale_noise(clean, t.reshape(1), noise)
        scheduler.set_begin_index(0)
        scheduler._step_index = None  # Heun's counts from there
        return found
    if hasattr(scheduler, "sigmas"):
        scheduler.set_begin_index(index)
        found = scheduler.add_noise(clean, noise, t.reshape(1).repeat(len(clean)))
        scheduler.set_begin_index(0)
        return found
    return scheduler.add_noise(clean, noise, t.reshape(1).repeat(len(clean)))


@needs_diffusers
@pytest.mark.parametrize("strength", [0.1, 0.35, 0.8, 1.0])
@pytest.mark.parametrize("name", peers.CASES)
def test_image_to_image_is_diffusers(name, strength, monkeypatch):
    scheduler, step_options, engine, arguments = peers.prepared(name, STEPS)
    begin = (STEPS - int(STEPS * strength)) * getattr(scheduler, "order", 1)  # get_timesteps of the pipelines
    x = noised(scheduler, IMAGES, scheduler.timesteps[begin], begin)
    want = peers.run(scheduler, monkeypatch, x=x, begin=begin, **step_options)
    with engine:
        got = engine.sample(peers.BATCH, image=IMAGES, strength=strength, **arguments)
    assert np.abs(got - want).max() < peers.TOLERANCES[arguments["sampler"]] * np.abs(want).max()


@needs_diffusers
@pytest.mark.parametrize("mask", [MASK, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("name", [one for one in peers.CASES if one not in NOISED_TO_ANOTHER_LEVEL])
def test_inpainting_is_diffusers(name, strength, mask, monkeypatch):
    import torch

    scheduler, step_options, engine, arguments = peers.prepared(name, STEPS)
    timesteps, keep = scheduler.timesteps, torch.from_numpy(mask).double()[:, None]
    begin = (STEPS - int(STEPS * strength)) * getattr(scheduler, "order", 1)
    x = None if strength == 1 else noised(scheduler, IMAGES, timesteps[begin], begin)
    # Before the run, which counts the scheduler's steps on.
    levels = [noised(scheduler, IMAGES, timesteps[i + 1], i + 1) for i in range(len(timesteps) - 1)]
    levels.append(torch.from_numpy(IMAGES).double())

    def after(i, state):
        return keep * state + (1 - keep) * levels[i][..., None]

    want = peers.run(scheduler, monkeypatch, x=x, begin=begin, after=after, **step_options)
    with engine:
        got = engine.sample(peers.BATCH, image=IMAGES, mask=mask, strength=strength, **arguments)
    assert np.abs(got - want).max() < peers.TOLERANCES[arguments["sampler"]] * np.abs(want).max()


def test_what_is_kept_is_kept_to_the_bit_and_the_rest_is_drawn():
    image = RNG.uniform(-1, 1, support.SHAPE).astype(np.float32)
    mask = np.zeros(support.SHAPE, np.float32)
    mask[..., 2:] = 1
    with support.make_engine() as engine:
        got = engine.sample(3, cond=1, image=image, mask=mask, steps=6, seed=0, eta=0.5)
    np.testing.assert_array_equal(got[..., :2], np.broadcast_to(image[..., :2], got[..., :2].shape))
    assert np.ptp(got[..., 2:], axis=0).min() > 0


def test_a_mask_of_ones_keeps_nothing_and_one_of_zeros_all():
    image = RNG.uniform(-1, 1, support.SHAPE).astype(np.float32)
    with support.make_engine() as engine:
        run = {"cond": 2, "steps": 7, "seed": 5, "sampler": "dpmpp_2m"}
        free = engine.sample(1, **run)
        np.testing.assert_array_equal(engine.sample(1, image=image, mask=np.ones(support.SHAPE), **run), free)
        np.testing.assert_array_equal(engine.sample(1, image=image, mask=np.zeros(support.SHAPE), **run)[0], image)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_2m", "plms", "unipc"])
def test_in_a_shared_loop_each_keeps_its_own(sampler):
    images = RNG.uniform(-1, 1, (4, *support.SHAPE)).astype(np.float32)
    masks = RNG.uniform(size=(4, *support.SHAPE)) < 0.5
    run = {"sampler": sampler, "steps": 6, "guidance_scale": 2.0}
    requests = [
        sf.Request(cond=i, seed=i, image=images[i], mask=masks[i] if i % 2 else None, strength=(i + 1) / 4, **run)
        for i in range(4)
    ]
    with support.make_engine(max_rows=3) as engine:  # they take turns
        free = engine.submit(sf.Request(cond=1, seed=9, **run))
        together = [future.result() for future in [engine.submit(one) for one in requests]]
        alone = [engine.submit(one).result() for one in requests]
        np.testing.assert_array_equal(free.result(), engine.sample(cond=1, seed=9, **run)[0])
    np.testing.assert_array_equal(together, alone)


def test_samples_of_one_table_and_strength_share_what_is_left_of_it():
    edit = Edit(sf.ModelInfo(support.SHAPE, support.SCHEDULE), 3, GOOD, None, [0.5, 0.5, 0.7])
    table = sf.samplers.unipc(support.SCHEDULE, 10)
    first, second, other = (edit.apply(i, table)[0] for i in range(3))
    assert first is second
    assert (len(first), len(other)) == (5, 7)


@pytest.mark.parametrize(
    "table",
    [
        support.two_line_table(5),
        sf.samplers.unipc(support.SCHEDULE, 10)[2:],
        sf.samplers.unipc(sf.NoiseSchedule.scaled_linear(), 10),
        dataclasses.replace(sf.samplers.plms(support.SCHEDULE, 10), options={"steps": 10, "order": 4}),
        dataclasses.replace(sf.samplers.plms(support.SCHEDULE, 10), sampler="ddim", options={"steps": 10}),
    ],
    ids=["by-hand", "cut", "another-schedule", "strange-options", "another-sampler"],
)
def test_a_second_line_that_no_sampler_makes_for_the_model_cannot_begin_late(table):
    with support.make_engine() as engine:
        engine.sample(1, cond=1, image=GOOD, table=table, strength=1.0)
        with pytest.raises(ValueError, match=r"strength must be 1 with a table that has a second line .* got 0.5 with"):
            engine.sample(1, cond=1, image=GOOD, table=table, strength=0.5)


def test_one_image_and_one_plane_serve_all_samples():
    image = RNG.uniform(-1, 1, support.SHAPE).astype(np.float32)
    plane = RNG.uniform(size=support.SHAPE[1:]) < 0.5
    run = {"cond": 2, "steps": 3, "seed": 5}
    with support.make_engine() as engine:
        want = engine.sample(2, image=np.stack([image] * 2), mask=np.stack([plane[None]] * 2), **run)
        for mask in (plane, plane[None], plane.astype(int), np.broadcast_to(plane, (2, *support.SHAPE))):
            np.testing.assert_array_equal(engine.sample(2, image=image, mask=mask, **run), want)


def test_passes_are_those_of_the_steps_left():
    image = np.zeros(support.SHAPE, np.float32)
    with support.make_engine() as engine:
        engine.sample(1, cond=1, image=image, strength=0.3, steps=10, guidance_scale=2.0)
        assert engine.stats()["network_passes"] == 2 * 3


def test_previews_keep_what_is_given():
    image = RNG.uniform(-1, 1, support.SHAPE).astype(np.float32)
    mask = np.zeros(support.SHAPE)
    mask[..., :1] = 1
    with support.make_engine() as engine:
        stopped = engine.sample(1, cond=1, image=image, mask=mask, steps=9, callback=lambda step, *_: step < 4)
    np.testing.assert_array_equal(stopped[0, ..., 1:], image[..., 1:])


GOOD = np.zeros(support.SHAPE, np.float32)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"mask": GOOD}, ValueError, "mask needs an image, got image=None"),
        ({"strength": 0.5}, ValueError, "strength needs an image, got image=None"),
        ({"image": GOOD, "strength": 0.0}, ValueError, "strength must be above 0 and at most 1, got 0.0"),
        ({"image": GOOD, "strength": 1.1}, ValueError, "strength must be above 0 and at most 1, got 1.1"),
        ({"image": GOOD, "strength": np.nan}, ValueError, "strength must be above 0 and at most 1, got nan"),
        ({"image": GOOD, "strength": 0.05}, ValueError, "at least one of 10 steps, at least 0.1, got 0.05"),
        ({"image": GOOD, "strength": "half"}, TypeError, "strength must be a number, got 'half'"),
        ({"image": GOOD, "strength": [0.5]}, ValueError, "strength must be one value, or one for each of the 2"),
        ({"image": GOOD[:, :-1]}, ValueError, r"image must have shape \(1, 4, 5\) or \(2, 1, 4, 5\), got \(1, 3, 5\)"),
        ({"image": np.stack([GOOD] * 3)}, ValueError, r"image must have shape .* got \(3, 1, 4, 5\)"),
        ({"image": GOOD.astype(np.uint8)}, TypeError, "image must be floating point, got uint8"),
        (
            {"image": GOOD + 255},
            ValueError,
            r"image must be in .* data range, -1 to 1, got 255 at \(0, 0, 0\)",
        ),
        ({"image": GOOD + np.nan}, ValueError, r"image must be finite, got nan at \(0, 0, 0\)"),
        ({"image": GOOD, "mask": np.ones((5, 4))}, ValueError, r"mask must have shape \(4, 5\) or .* got \(5, 4\)"),
        (
            {"image": GOOD, "mask": GOOD + 255},
            ValueError,
            r"between 0 \(kept\) and 1 \(drawn\), got 255 at",
        ),
        ({"image": GOOD, "mask": GOOD + np.nan}, ValueError, r"between 0 \(kept\) and 1 \(drawn\), got nan"),
        ({"image": GOOD, "mask": np.full((4, 5), "a")}, TypeError, "mask must hold numbers or truth values, got <U1"),
    ],
)
def test_bad_input_is_named(given, error, message):
    with support.make_engine(data_range=(-1, 1)) as engine, pytest.raises(error, match=message):
        engine.sample(2, cond=1, steps=10, **given)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (GOOD[None] + 2, "images must be in the model's data range, -1 to 1, got 2 at"),
        (GOOD, r"images must have shape \(n, 1, 4, 5\), got \(1, 4, 5\)"),
        (GOOD[None][:0], r"images must have shape \(n, 1, 4, 5\), got \(0, 1, 4, 5\)"),
    ],
)
def test_encode_takes_images_of_the_model_s_range(images, message):
    with support.make_engine(data_range=(-1, 1)) as engine, pytest.raises(ValueError, match=message):
        engine.encode(images, steps=3)


def test_samples_may_overshoot_the_range_and_where_it_is_unknown_nothing_is_held_to_it():
    with support.make_engine(data_range=(0, 255)) as engine:
        engine.encode(GOOD[None] + 340, steps=2)
        with pytest.raises(ValueError, match="0 to 255, got 360 at"):
            engine.encode(GOOD[None] + 360, steps=2)
    with support.make_engine() as engine:
        engine.encode(GOOD[None] + 360, steps=2)
        with pytest.raises(ValueError, match="images must be finite, got inf at"):
            engine.encode(GOOD[None] + np.inf, steps=2)
