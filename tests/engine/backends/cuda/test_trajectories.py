"""Whole trajectories on the recording driver: the same bits as the engine, in one launch."""

import contextlib
import logging

import numpy as np
import pytest
import support
from recording_driver import forward_arguments
from tolerances import ADAPTED_SAMPLES

import stepfuse as sf
from stepfuse._core import cuda
from stepfuse.backends.cuda.static_batch import split
from stepfuse.backends.cuda.trajectories import Trajectories
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.requests.resolution import Compiler, resolve

torch = pytest.importorskip("torch")

INFO = ModelInfo(shape=support.SHAPE, schedule=support.SCHEDULE, cond=support.COND)
TABLES = (
    sf.samplers.ddim(support.SCHEDULE, 6, eta=1.0, guidance_scale=3.0),
    sf.samplers.dpmpp_2m(support.SCHEDULE, 5),
    sf.samplers.ddim(support.SCHEDULE, 7, guidance_scale=2.0, guidance_interval=(0.0, 0.5)),
    sf.samplers.ddpm(support.SCHEDULE, 4, guidance_scale=0.0),
)
MIXED = {"table": TABLES, "cond": [2, 4, 5, None], "seed": [11, 1 << 63, 13, 14]}
#: Guided far enough for clean estimates to leave the data range.
STRONG = {"cond": 2, "negative_cond": 6, "steps": 4, "guidance_scale": 6.0, "seed": 4}
ADAPTED = (
    sf.samplers.ddim(support.SCHEDULE, 6, eta=1.0, guidance_scale=3.0).adapt(guidance_rescale=0.6),
    sf.samplers.dpmpp_2m(support.SCHEDULE, 5, guidance_scale=4.0).adapt(dynamic_threshold=(0.8, 3.0)),
    sf.samplers.ddim(support.SCHEDULE, 3, guidance_scale=5.0).adapt(guidance_rescale=1.0, dynamic_threshold=(1.0, 2.0)),
    sf.samplers.ddpm(support.SCHEDULE, 4),
)
#: A way of guidance each.
GUIDED = (
    sf.samplers.ddim(support.SCHEDULE, 6, eta=1.0, guidance_scale=3.0).adapt(apg=(0.3, 1.0), guidance_rescale=0.5),
    sf.samplers.unipc(support.SCHEDULE, 5, guidance_scale=4.0).adapt(apg=(0.0, 0.0), apg_form="paper"),
    sf.samplers.dpmpp_2m(support.SCHEDULE, 5, guidance_scale=5.0).with_zero_init(1).adapt(cfg_zero_star=True),
    sf.samplers.ddim(support.SCHEDULE, 4, guidance_scale=3.0).adapt(cfg_renorm=1),
)
PICTURES = np.random.default_rng(5).uniform(-1, 1, (4, *support.SHAPE)).astype(np.float32)
MASK = np.float32([[1, 1, 0, 0, 0]] * 2 + [[0.5, 0.25, 0, 1, 1]] * 2)
#: What the driver is asked for a batch: states, seeds, the first rows, their timesteps and labels, and the frames. The
#: query and the wait are for the uploads before, whose memory the host is about to overwrite.
UPLOADS = ["cuMemcpyHtoDAsync"] * 5
FRAMES = ["cuEventSynchronize", "cuMemcpyHtoDAsync", "cuEventRecord"]
LOADED = ["cuEventQuery", *UPLOADS, "cuEventRecord", *FRAMES, "cuGraphLaunch"]
#: And for its result, copied to the host's memory.
DOWNLOADED = ["cuMemcpyDtoHAsync"]
FORMS = pytest.mark.parametrize("form", ["unrolled", "loop"])


class HostNetwork:
    """The engine's test network in the host's memory, with forwards captured on the fake driver."""

    storage = "float32"

    def __init__(self, fake, step_on, buckets=(8, 4, 2), max_rows=8, fn=support.rowwise):
        self.context = fake.open()
        self.stream = cuda.Stream(self.context)
        self.max_rows = max_rows
        n = support.ELEMENTS
        self.sample, self.prediction = np.zeros((2, max_rows, n), np.float32)
        self.timestep, self.class_labels = np.zeros(max_rows, np.float32), np.full(max_rows, support.NULL)
        labels = self.class_labels

        def network(x, t):  # no method: the fake keeps it, and must not keep what is to be released
            shaped = x.reshape(len(x), *support.SHAPE)
            return fn(shaped, t, {"class_labels": labels[: len(x)]}).reshape(x.shape)

        names = ("sample", "timestep", "prediction", "class_labels")
        self.addresses = {name: getattr(self, name).ctypes.data for name in names}
        self.cond_storage = {"class_labels": "int64"}
        self._steps, self._forward = step_on(self.context, network)
        self.graphs = {}
        for rows in buckets:
            capture = cuda.Capture(self.stream)
            self.forward(rows)
            self.graphs[rows] = capture.end()

    def get(self, slots, n, **kind):
        """As of StepKernels."""
        return self._steps.get(slots, n, **kind)

    def named(self, name):
        """As of StepKernels."""
        return self._steps.named(name)

    def ordered(self):
        return contextlib.nullcontext()

    def forward(self, rows):
        at = [self.addresses[name] for name in ("sample", "timestep", "prediction")]
        self._forward.launch(self.stream, rows, forward_arguments(rows, support.ELEMENTS, *at))

    def copy_of(self, states, count):
        copy = np.empty((count, *support.SHAPE), np.float32)
        states.download(self.stream, copy)  # at once: this device is never late
        return torch.from_numpy(copy)


@pytest.fixture
def made(fake, step_on):
    def make(form="unrolled", **options):
        network = HostNetwork(fake, step_on, **options)
        return Trajectories(INFO, network, network, form=form), network

    return make


@pytest.fixture
def drawn(made):
    """``drawn(way, n, arguments)``: samples, twice, since a graph is launched again."""

    def draw(way, n, arguments, **options):
        eager = way == "eager"
        trajectories, _ = made("unrolled" if eager else way, buckets=() if eager else (8, 4, 2), **options)
        assert trajectories.eager == eager
        return [trajectories.sample(n, **arguments).numpy() for _ in range(2)]

    return draw


def contrasted(x, t, cond):
    """The engine's test network, its contrast another for each class: guidance changes its deviation."""
    contrast = 1 + cond["class_labels"] / np.float32(5)
    return support.rowwise(x, t, cond) * contrast.astype(np.float32).reshape(-1, 1, 1, 1)


def engine_s(n, fn=support.rowwise, **arguments):
    with support.make_engine(fn) as engine:
        return engine.sample(n, **arguments)


#: Parts of an image put back, one plane's, blended, among other samples; or only begun with; clean estimates clamped.
KEPT = {
    "plane": (2, {"cond": 2, "steps": 4, "guidance_scale": 2.0, "image": PICTURES[0], "mask": MASK, "seed": 3}),
    "late": (2, {"cond": 2, "steps": 5, "eta": 1.0, "image": PICTURES[:2], "mask": MASK, "strength": 0.7, "seed": 3}),
    "multistep": (1, {"sampler": "dpmpp_2m", "steps": 5, "image": PICTURES[0], "mask": 0.4 * MASK, "seed": 9}),
    "image-alone": (3, {"cond": 2, "steps": 5, "image": PICTURES[:3], "strength": [0.9, 0.5, 0.3], "seed": 3}),
    "mixed": (4, {**MIXED, "image": PICTURES, "mask": MASK, "strength": [1, 0.6, 0.5, 1.0]}),
    "noise": (2, {"cond": 1, "steps": 3, "image": PICTURES[:2], "mask": MASK, "noise": 2 * PICTURES[2:], "seed": 1}),
    "more-than-fit": (6, {"cond": 3, "steps": 3, "guidance_scale": 2.0, "image": PICTURES[0], "mask": MASK, "seed": 5}),
    "threshold": (2, {"cond": 3, "steps": 4, "dynamic_threshold": (0.9, 1.5), "eta": 1.0, "seed": 5}),
    "threshold-guided": (2, {**STRONG, "dynamic_threshold": (0.7, 4.0), "image": PICTURES[1], "mask": MASK}),
}
#: Sums over whole samples, which are added up in another order than the engine adds them.
RESCALED = {
    "rescale": (2, {**STRONG, "guidance_rescale": 0.7}),
    "rescale-and-threshold": (2, {**STRONG, "guidance_rescale": 0.4, "dynamic_threshold": (0.7, 4.0)}),
    "renorm": (2, {**STRONG, "cfg_renorm": 1}),
    "apg": (2, {**STRONG, "apg": (0.0, 1.0), "apg_form": "paper"}),
    "mixed": (4, {"table": GUIDED, "cond": [2, 4, 5, 1], "seed": 8}),
    "all": (4, {"table": ADAPTED, "cond": [2, 4, 5, None], "seed": 8, "image": PICTURES, "mask": MASK}),
}


@pytest.mark.parametrize("way", ["unrolled", "loop", "eager"])
@pytest.mark.parametrize(("n", "arguments"), [pytest.param(*one, id=name) for name, one in KEPT.items()])
def test_what_is_kept_or_thresholded_is_the_engine_s_to_the_bit(drawn, n, arguments, way):
    for got in drawn(way, n, arguments):
        np.testing.assert_array_equal(got, engine_s(n, **arguments))


@pytest.mark.parametrize("way", ["unrolled", "loop", "eager"])
@pytest.mark.parametrize(("n", "arguments"), [pytest.param(*one, id=name) for name, one in RESCALED.items()])
def test_rescaled_guidance_is_the_engine_s(drawn, n, arguments, way):
    want = engine_s(n, contrasted, **arguments)
    for got in drawn(way, n, arguments, fn=contrasted):
        np.testing.assert_allclose(got, want, rtol=0, atol=ADAPTED_SAMPLES * np.abs(want).max())
    ways = "guidance_rescale", "apg", "apg_form", "cfg_renorm"
    plain = {name: value for name, value in arguments.items() if name not in ways}
    if "table" in plain:
        plain["table"] = [one.adapt(dynamic_threshold=one.dynamic_threshold) for one in plain["table"]]
    assert np.abs(engine_s(n, contrasted, **plain) - want).max() > 1e-2 * np.abs(want).max()


@FORMS
def test_needs_have_a_trajectory_of_their_own_and_memory_once(made, fake, form):
    trajectories, _ = made(form)
    kept = {"image": PICTURES[0], "mask": MASK, "cond": 1, "steps": 3, "seed": 0}
    rescaled = {"cond": 1, "steps": 3, "guidance_scale": 2.0, "guidance_rescale": 0.5, "seed": 0}
    # Each has a trajectory of its own, which allocates its frames; known regions and sums are allocated beside.
    for arguments, allocations in (({"cond": 1, "steps": 3, "seed": 0}, 1), (kept, 2), (rescaled, 2)):
        fake.log()
        trajectories.sample(2, **arguments)
        assert fake.names().count("cuMemAlloc") == allocations
    fake.log()
    for image in PICTURES:
        trajectories.sample(2, **{**kept, "image": image})
        trajectories.sample(2, cond=1, steps=3, seed=0)
    assert not {name for name in fake.names() if "Add" in name or "Instantiate" in name or "Alloc" in name}


@pytest.mark.parametrize(
    ("n", "arguments"),
    [
        pytest.param(4, MIXED, id="mixed"),
        pytest.param(1, {"cond": 3, "steps": 4, "guidance_scale": 2.0, "seed": 5}, id="named-sampler"),
        pytest.param(
            3, {"cond": "bag", "negative_cond": 0, "steps": 3, "guidance_scale": 4.0, "seed": 5}, id="negative"
        ),
        pytest.param(2, {"negative_cond": 1, "steps": 3, "guidance_scale": 4.0, "seed": 5}, id="negative-alone"),
        pytest.param(2, {"cond": 1, "steps": 3, "seed": 1, "noise": np.ones((2, *support.SHAPE), "f4")}, id="noise"),
        # Six samples of two rows each where eight rows fit.
        pytest.param(6, {"cond": 3, "steps": 3, "guidance_scale": 2.0, "seed": 5}, id="more-than-fit"),
    ],
)
@pytest.mark.parametrize("way", ["unrolled", "loop", "eager"])
def test_samples_are_the_engine_s_to_the_bit(drawn, n, arguments, way):
    for got in drawn(way, n, arguments):
        np.testing.assert_array_equal(got, engine_s(n, **arguments))


@FORMS
def test_a_batch_is_one_launch_and_nothing_waits(made, fake, form):
    trajectories, _ = made(form)
    trajectories.sample(4, **MIXED)
    fake.log()
    trajectories.sample(4, **MIXED)
    assert fake.names() == LOADED + DOWNLOADED


def test_a_loop_is_built_once_for_all_numbers_of_steps(made, fake):
    trajectories, _ = made("loop")
    trajectories.sample(2, cond=1, steps=3, eta=1.0, seed=0)
    fake.log()
    for steps in (2, 5, 64):
        trajectories.sample(2, cond=2, steps=steps, eta=1.0, seed=0)
    assert not {name for name in fake.names() if "Add" in name or "Instantiate" in name}
    trajectories.sample(2, cond=2, steps=65, eta=1.0, seed=0)
    assert "cuGraphInstantiateWithFlags" in fake.names()


def test_the_trajectory_that_was_used_longest_ago_is_given_up(made, fake):
    trajectories, _ = made()
    for steps in range(1, 10):
        trajectories.sample(1, cond=1, steps=steps, seed=0)
    fake.log()
    trajectories.sample(1, cond=1, steps=9, seed=0)
    assert "cuGraphInstantiateWithFlags" not in fake.names()
    trajectories.sample(1, cond=1, steps=1, seed=0)
    names = fake.names()
    assert (names.count("cuGraphExecDestroy"), names.count("cuGraphInstantiateWithFlags")) == (1, 1)


def test_without_memory_for_a_trajectory_the_kept_ones_are_given_up(made, fake, caplog):
    trajectories, _ = made()
    want = engine_s(2, cond=1, steps=3, guidance_scale=2.0, seed=0)
    trajectories.sample(2, cond=1, steps=5, seed=0)
    fake.log()
    trajectories.sample(2, cond=1, steps=3, seed=0)
    until = fake.names().index("cuGraphInstantiateWithFlags")
    fake.fail(until, 2)
    with caplog.at_level(logging.WARNING, logger="stepfuse"):
        got = trajectories.sample(2, cond=1, steps=3, guidance_scale=2.0, seed=0)
    np.testing.assert_array_equal(got.numpy(), want)
    assert "no memory for a trajectory of 3 steps" in caplog.text
    assert fake.names().count("cuGraphExecDestroy") == 2


def test_what_fails_once_does_not_concern_the_next_call(made, fake):
    trajectories, _ = made()
    want = trajectories.sample(2, cond=1, steps=3, seed=0)
    fake.log()
    fake.fail(LOADED.index("cuGraphLaunch"), 2)
    with pytest.raises(cuda.CudaError, match="cuGraphLaunch failed"):
        trajectories.sample(2, cond=1, steps=3, seed=0)
    assert torch.equal(trajectories.sample(2, cond=1, steps=3, seed=0), want)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"guidance_rescale": 2.0}, "guidance_rescale must be between 0 and 1, got 2.0", id="rescale"),
        pytest.param({"mask": np.ones((1, 4, 5))}, "mask needs an image, got image=None", id="mask-alone"),
        pytest.param({"strength": 0.5}, "strength needs an image, got image=None", id="strength-alone"),
        pytest.param({"image": np.zeros((3, 3), "f4")}, r"image must have shape \(1, 4, 5\) or", id="image"),
        pytest.param({"image": PICTURES[0], "mask": np.ones(3)}, r"mask must have shape .* got \(3,\)", id="mask"),
        pytest.param({"steps": 0}, "steps must be between 1 and 1000, got 0", id="steps"),
        pytest.param({"noise": np.zeros((2, 3), "f4")}, r"noise must have shape \(2, 1, 4, 5\), got", id="noise"),
    ],
)
def test_what_cannot_be_drawn_is_refused(made, arguments, message):
    trajectories, _ = made()
    with pytest.raises(ValueError, match=message):
        trajectories.sample(2, **{"cond": 1, "steps": 2, **arguments})


def test_forms_and_buckets_that_do_not_do_are_refused(made, fake, step_on):
    network = HostNetwork(fake, step_on, buckets=(1,), max_rows=1)
    with pytest.raises(ValueError, match="form must be one of unrolled, loop, got 'rolled'"):
        Trajectories(INFO, network, network, form="rolled")
    with pytest.raises(ValueError, match="a guided sample takes 2 rows of a forward, the largest has 1"):
        Trajectories(INFO, network, network).sample(1, cond=1, steps=2, guidance_scale=2.0)


@pytest.mark.parametrize(
    ("scales", "max_rows", "parts"),
    [
        pytest.param([1, 1, 1], 3, [(0, 3)], id="all"),
        pytest.param([2, 2, 2], 5, [(0, 2), (2, 3)], id="guided"),
        pytest.param([1, 2, 1, 1], 2, [(0, 1), (1, 2), (2, 4)], id="in-order"),
    ],
)
def test_batches_are_cut_where_the_next_sample_has_no_rows(scales, max_rows, parts):
    arguments = dict.fromkeys(("seed", "table", "sampler", "eta"))
    requests = resolve(
        Compiler(INFO), len(scales), cond=1, steps=2, guidance_scale=[float(s) for s in scales], options={}, **arguments
    )
    assert [(part.start, part.stop) for part in split(requests, max_rows)] == parts
