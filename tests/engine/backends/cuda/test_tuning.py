"""Which layout of the step is taken, by the recording driver's clock; and every kernel by its name."""

import collections
import ctypes
import logging

import numpy as np
import pytest

from stepfuse._core import cuda
from stepfuse.backends.cuda import kernels as cuda_kernels
from stepfuse.backends.cuda.kernels import Cubin, KernelError, StepKernels
from stepfuse.backends.cuda.tuning import step_seconds
from stepfuse.kernels.configs import ALIGNED_LAYOUTS, LARGE_FROM
from stepfuse.samplers.table import COLUMNS

pytest.importorskip("triton", reason="Triton is not installed: it comes for x86-64 Linux")

from stepfuse.kernels.variants import variants

VARIANTS = {variant.name: variant for variant in variants()}
N, MANY = 64, LARGE_FROM // 64
OUT_OF_MEMORY, ANOTHER = 2, 719


def cubin(name, cc):
    """A variant as the fake loads it: a kernel that is called like it."""
    variant = VARIANTS[name]
    taken = {argument: kind for argument, kind in variant.signature.items() if kind}
    arguments = tuple((argument, kind, argument in variant.divisible_by_16) for argument, kind in taken.items())
    image = f"{name} {len(arguments)}\n".encode()
    return Cubin(image, name, arguments, variant.config.block, variant.config.num_warps, 0, variant.grid)


class Clock:
    """The time of each launch, and its arguments."""

    def __init__(self, fake, microseconds):
        self.fake = fake
        self.microseconds = microseconds  # by layout
        self.launches = collections.Counter()  # by kernel
        self.extra = {}  # microseconds of one launch, by kernel and launch number
        self.given = {}

    def __call__(self, name, words, shape):
        for i, (argument, kind, _) in enumerate(cubin(name, 90).arguments):
            wide = kind[0] == "*" or kind == "i64"
            self.given[argument] = (ctypes.c_int64 if wide else ctypes.c_int32).from_address(words[i]).value
        self.given["slots"] = shape[1]
        extra = self.extra.get((name, self.launches[name]), 0)
        self.launches[name] += 1
        self.fake.spend(1e-6 * (self.microseconds[name.rpartition(".")[2]] + extra))

    def array(self, name, shape, dtype):
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer((ctypes.c_char * count).from_address(self.given[name]), dtype).reshape(shape)


@pytest.fixture
def made(fake, monkeypatch):
    """``made(microseconds)``: the kernels of a network in bfloat16, and a clock."""
    monkeypatch.setattr(cuda_kernels, "compiled", cubin)

    def make(microseconds=None, **options):
        clock = Clock(fake, dict.fromkeys(ALIGNED_LAYOUTS, 10.0) | (microseconds or {}))
        fake.run_kernels(clock)
        return StepKernels(fake.open(), "bfloat16", **options), clock

    return make


def name_of(layout, noise=False):
    return f"fused_step.float32.bfloat16.{'noise' if noise else 'plain'}.{layout}"


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("fastest", ALIGNED_LAYOUTS)
def test_the_fastest_is_taken(made, fastest, noise):
    kernels, clock = made({fastest: 9.0})
    for slots in (2, MANY):
        assert kernels.get(slots, N, noise=noise) is kernels.named(name_of(fastest, noise))
    assert set(clock.launches) == {name_of(layout, noise) for layout in ALIGNED_LAYOUTS}


@pytest.mark.parametrize(("slots", "usual"), [(2, "small"), (MANY, "large")])
def test_what_is_hardly_faster_does_not_replace_the_rule_of_thumb_s(made, slots, usual):
    kernels, _ = made(dict.fromkeys(ALIGNED_LAYOUTS, 9.9) | {usual: 10.0})
    assert kernels.get(slots, N, noise=False) is kernels.named(name_of(usual))


@pytest.mark.parametrize(("slots", "usual"), [(2, "small"), (MANY, "large")])
def test_untuned_it_is_the_rule_of_thumb_s_and_nothing_runs(made, slots, usual):
    kernels, clock = made({"wide": 1.0}, tune=False)
    assert kernels.get(slots, N, noise=False) is kernels.named(name_of(usual))
    assert not clock.launches


def test_samples_that_are_not_aligned_have_one_layout_and_nothing_runs(made):
    kernels, clock = made()
    assert kernels.get(2, 20, noise=False) is kernels.named(name_of("any"))
    assert not clock.launches


def test_each_size_is_measured_once_and_serves_up_to_twice_its_slots(made):
    kernels, clock = made()
    sizes = []
    for slots, n, noise in ((4, N, False), (7, N, False), (5, N, False), (8, N, False), (4, 128, False), (4, N, True)):
        before = clock.launches.total()
        kernels.get(slots, n, noise=noise)
        if clock.launches.total() > before:
            sizes.append((clock.given["slots"], clock.given["n"], "seed" in clock.given))
    assert sizes == [(4, N, False), (8, N, False), (4, 128, False), (4, N, True)]


def test_what_is_timed_is_a_guided_step_with_rows_to_write(made):
    kernels, clock = made()
    seen = []

    class Look(Clock):
        def __call__(self, name, words, shape):
            super().__call__(name, words, shape)
            slots = self.given["slots"]
            rows = self.array("rows", (slots, len(COLUMNS)), np.float32)
            maps = [self.array(one, (slots,), np.int32).tolist() for one in ("row_cond", "row_uncond", "next_cond")]
            seen.append((maps, rows[:, COLUMNS.index("q_z")].tolist(), self.given["h"]))
            for at, rows, size in (("x", slots, 4), ("prediction", 2 * slots, 2), ("next_input", 2 * slots, 2)):
                self.array(at, (rows * N * size,), np.uint8)[:] = 7  # its own, to the end

    clock.fake.run_kernels(Look(clock.fake, clock.microseconds))
    kernels.get(2, N, noise=True)
    assert seen[0] == ([[0, 1], [2, 3], [0, 1]], [1.0, 1.0], 0)
    assert all(one == seen[0] for one in seen)


def test_seconds_are_those_of_a_launch_neither_the_first_nor_a_rare_one_counts(made):
    kernels, clock = made({"small": 3.0, "wide": 2.5})
    candidates = [kernels.named(name_of(layout)) for layout in ALIGNED_LAYOUTS]
    clock.extra = {(name_of("wide"), 0): 900.0, (name_of("wide"), 20): 900.0, (name_of("small"), 12): 50.0}
    found = step_seconds(candidates, clock.fake.open(), 2, N, 2, noise=False)
    assert found == pytest.approx([3e-6, 1e-5, 1e-5, 2.5e-6], rel=1e-4)


def test_each_launch_that_is_timed_finds_a_cache_that_a_copy_has_filled(made, fake):
    kernels, _ = made()
    candidates = [kernels.named(name_of(layout)) for layout in ALIGNED_LAYOUTS]
    context = fake.open()
    fake.log()
    step_seconds(candidates, context, 2, N, 2, noise=False)
    calls = fake.log()
    at = [i for i, call in enumerate(calls) if call.startswith("cuLaunchKernel")]
    assert len(at) >= 10 * len(candidates)
    filled = f"cuMemcpyDtoDAsync {context.cache_bytes}"
    assert all(calls[i - 2 : i] == [filled, "cuEventRecord"] and calls[i + 1] == "cuEventRecord" for i in at)


def test_the_choice_and_its_times_are_logged(made, caplog):
    kernels, _ = made({"medium": 2.0})
    with caplog.at_level(logging.DEBUG, "stepfuse"):
        kernels.get(5, N, noise=True)
    assert caplog.messages == [
        "a step over 4 samples of 64 elements, with noise: medium of small 10.00 us, medium 2.00 us, large 10.00 us,"
        " wide 10.00 us"
    ]


def test_without_memory_it_is_the_rule_of_thumb_s(made, fake, caplog):
    kernels, clock = made({"wide": 1.0})
    fake.set(memory=1 << 12)
    with caplog.at_level(logging.DEBUG, "stepfuse"):
        assert kernels.get(2, 1024, noise=False) is kernels.named(name_of("small"))
        assert kernels.get(3, 1024, noise=False) is kernels.named(name_of("small"))
    assert not clock.launches
    [message] = caplog.messages
    assert message.startswith("a step over 2 samples of 1024 elements, without noise was not timed: ")
    assert "out of memory" in message
    assert kernels.get(1, N, noise=False) is kernels.named(name_of("wide"))  # for which there is


@pytest.mark.slow
@pytest.mark.parametrize("code", [OUT_OF_MEMORY, ANOTHER])
def test_whatever_fails_while_it_is_timed_the_rule_of_thumb_s_is_taken(made, fake, code):
    def measured(fail_at=None):
        kernels, _ = made({"wide": 1.0})
        for layout in ALIGNED_LAYOUTS:
            kernels.named(name_of(layout, noise=True))
        before = fake.calls
        if fail_at is not None:
            fake.fail(fail_at, code)
        chosen = kernels.get(2, N, noise=True)
        fake.fail(-1, 0)
        layout = [one for one in ALIGNED_LAYOUTS if kernels.named(name_of(one, noise=True)) is chosen]
        return layout, fake.calls - before

    layout, calls = measured()
    assert layout == ["wide"]
    for call in range(calls):
        layout, _ = measured(call)
        assert layout in (["small"], ["wide"])  # errors of releases are ignored


def test_every_kernel_s_arguments_have_names_in_the_core(made):
    kernels, _ = made()
    for name in VARIANTS:
        assert isinstance(kernels.named(name), cuda.StepKernel)


def test_any_kernel_is_found_by_its_name_and_loaded_once(made, fake):
    kernels, _ = made()
    fake.log()
    for name in ("guided_rows", "keep_known.float32.bfloat16.aligned"):
        kernel = kernels.named(name)
        assert kernels.named(name) is kernel
        assert fake.names().count("cuModuleLoadDataEx") == 1
    assert isinstance(kernel, cuda.StepKernel)


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("guided_rows", (3, 1, 1)),
        ("thresholded_rows", (3, 1, 1)),
        ("magnitude_counts.float32.bfloat16.any", (2, 3, 1)),
        ("guidance_sums.bfloat16.any", (3, 3, 1)),
        ("keep_known.float32.bfloat16.any", (5, 3, 1)),
        ("renormed_predictions.bfloat16", (33, 3, 1)),
    ],
)
def test_a_kernel_s_grid_is_its_variant_s(made, fake, name, grid):
    kernels, _ = made()
    fake.run_kernels(lambda *_: None)
    arguments = {argument: 0 for argument, _, _ in cubin(name, 90).arguments}
    stream = cuda.Stream(fake.open())
    fake.log()
    kernels.named(name).launch(stream, 3, {**arguments, "n": 2049})
    [launched] = [line.split() for line in fake.log() if line.startswith("cuLaunchKernel")]
    assert tuple(map(int, launched[2:5])) == grid


def test_an_unknown_kernel_is_refused(fake):
    with pytest.raises(KernelError, match="there is no kernel fused_stop"):
        StepKernels(fake.open(), "float32").named("fused_stop")
