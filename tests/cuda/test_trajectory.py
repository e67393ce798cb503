"""A whole trajectory as one graph: its plan, its frames, and that it gives what the engine's loop gives."""

import gc

import numpy as np
import pytest
import support
from tolerances import ADAPTED_SAMPLES

import stepfuse as sf
from stepfuse import _core
from stepfuse._core import cuda
from stepfuse._core.cuda import Form, NodeKind

T, S, G, Q_H, Q_Z = (sf.samplers.table.COLUMNS.index(name) for name in ("t", "s", "g", "q_h", "q_z"))
FORMS = pytest.mark.parametrize("form", [Form.Unrolled, Form.While], ids=["unrolled", "while"])


def rows(*guidance, noise=0.0):
    table = np.zeros((len(guidance), 16), np.float32)
    table[:, G] = guidance
    table[:, T] = np.arange(len(guidance))[::-1]
    table[:, S] = 1
    table[:, Q_Z] = noise
    return table


def fields_of(node):
    return (node.kind, node.in_body, node.after, node.rows, node.frame)


def test_unrolled_each_step_is_a_forward_of_the_smallest_bucket_and_a_step():
    plan = cuda.plan_trajectory(Form.Unrolled, 2, [4, 3, 2], [8, 4, 2])
    assert [fields_of(node) for node in plan.nodes] == [
        (NodeKind.Forward, False, -1, 4, -1),
        (NodeKind.Step, False, 0, 0, 0),
        (NodeKind.Forward, False, 1, 4, -1),
        (NodeKind.Step, False, 2, 0, 1),
        (NodeKind.Forward, False, 3, 2, -1),
        (NodeKind.Step, False, 4, 0, 2),
    ]
    assert plan.forward_rows == [4, 4, 2]


@pytest.mark.parametrize("steps", [1, 2, 1000])
def test_a_loop_has_five_nodes_whatever_the_steps(steps):
    plan = cuda.plan_trajectory(Form.While, 2, [3] * steps, [8, 4, 2])
    assert [fields_of(node) for node in plan.nodes] == [
        (NodeKind.Begin, False, -1, 0, -1),
        (NodeKind.Loop, False, 0, 0, -1),
        (NodeKind.Forward, True, -1, 4, -1),
        (NodeKind.Step, True, 2, 0, -1),
        (NodeKind.Advance, True, 3, 0, -1),
    ]
    assert plan.forward_rows == [4] * steps


@FORMS
def test_memory_is_known_before_anything_is_built(form):
    # Two slots: 2 * (16 + 16 + 2 + 6 + 4 + 2 + 4) words, rounded up to whole cache lines of 16.
    frame = 112 * 4
    plan = cuda.plan_trajectory(form, 2, [2] * 10, [2])
    assert (plan.host_bytes, plan.device_bytes) == (64 + 10 * frame, 64 + 11 * frame)


def test_flags_of_each_step_take_whole_cache_lines_before_the_frames():
    plan = cuda.plan_trajectory(Form.Unrolled, 2, [2] * 10, [2], flags=True)
    assert (plan.host_bytes, plan.device_bytes) == (64 + 128 + 10 * 448, 64 + 128 + 11 * 448)
    with pytest.raises(ValueError, match="flags of each step need the unrolled form"):
        cuda.plan_trajectory(Form.While, 2, [2] * 10, [2], flags=True)


@FORMS
@pytest.mark.parametrize(
    ("slots", "forward_rows", "buckets", "message"),
    [
        pytest.param(2, [2, 9], [8, 4], "a step needs a forward of 9 rows, the largest has 8", id="rows"),
        pytest.param(2, [2], [], "a step needs a forward of 2 rows, the largest has 0", id="no-bucket"),
        pytest.param(0, [1], [1], "needs a sample and a step", id="no-slot"),
        pytest.param(1, [], [1], "needs a sample and a step", id="no-step"),
    ],
)
def test_what_cannot_be_planned_is_refused(form, slots, forward_rows, buckets, message):
    with pytest.raises(ValueError, match=message):
        cuda.plan_trajectory(form, slots, forward_rows, buckets)


@pytest.mark.parametrize(
    ("courses", "slot_rows", "forward_rows"),
    [
        pytest.param([(rows(1, 1), True)], [(0, -1)], [1, 1], id="conditional"),
        pytest.param([(rows(3, 3), False)], [(-1, 0)], [1, 1], id="unconditional"),
        pytest.param([(rows(3, 1), True), (rows(1, 1), True)], [(0, 2), (1, -1)], [3, 2], id="guided-at-first"),
        # Of a step that computes the unconditional pass alone, the row that holds the null condition.
        pytest.param([(rows(0, 0), True)], [(0, 1)], [2, 2], id="unconditional-alone"),
        pytest.param([(rows(3), True), (rows(3, 3, 3), True)], [(0, 2), (1, 3)], [4, 4, 4], id="one-ends-early"),
        pytest.param([(rows(1, 1, 1), True), (rows(1), True)], [(0, -1), (1, -1)], [2, 1, 1], id="the-last-ends-early"),
    ],
)
def test_a_slot_has_the_same_rows_in_every_forward(courses, slot_rows, forward_rows):
    frames = cuda.Frames(courses)
    assert (frames.slot_rows, frames.forward_rows) == (slot_rows, forward_rows)
    assert frames.steps == max(len(course) for course, _ in courses)


NEEDS = ("noise", "guidance", "threshold", "keep", "second", "renorm")
PATCHES = {"renorm_patch": 2, "shape": (1, 2, 4)}


def test_frames_hold_what_the_steps_need():
    plain, levels = (rows(1), True, _core.Adaptive()), np.float32([[0, 1], [1, 0]])
    for other, needs in (
        (plain, {}),
        ((rows(1, noise=0.5), True), {"noise": True}),
        ((rows(3), True, _core.Adaptive(0.5)), {"guidance": True}),
        ((rows(3), True, _core.Adaptive(blend="projected")), {"guidance": True}),
        ((rows(1), True, _core.Adaptive(0.5)), {}),  # nothing is guided
        ((rows(3), False, _core.Adaptive(0.5)), {}),
        ((rows(3), True, _core.Adaptive(**PATCHES)), {"renorm": True}),
        ((rows(1), True, _core.Adaptive(**PATCHES)), {}),
        ((rows(1), True, _core.Adaptive(0.0, 0.9, 2.0)), {"threshold": True}),
        ((rows(1), True, _core.Adaptive(), None), {}),
        ((rows(1), True, _core.Adaptive(), levels), {"keep": True}),
        ((np.pad(rows(1), ((0, 0), (0, 16))), True), {"second": True}),
    ):
        found, want = cuda.Frames([plain, other]).needs, cuda.StepNeeds(**needs)
        assert (found == want, hash(found)) == (True, hash(want))
        assert {name for name in NEEDS if getattr(found, name)} == set(needs)
    assert len({hash(cuda.StepNeeds(**{name: True})) for name in NEEDS}) == len(NEEDS)
    history = rows(1, 1)
    history[1, Q_H] = 1
    assert cuda.Frames([(history, True)]).registers == 1
    assert cuda.Frames([plain]).registers == 0
    for courses in ([], [(rows(), True)]):
        with pytest.raises(ValueError, match="at least one"):
            cuda.Frames(courses)
    with pytest.raises(ValueError, match=r"a table has shape \(S, 16\) or \(S, 32\)"):
        cuda.Frames([(np.zeros((2, 15), np.float32), True)])
    with pytest.raises(ValueError, match="needs 2 levels, one for each step and one for the result, got 3"):
        cuda.Frames([(*plain, np.zeros((3, 2), np.float32))])
    with pytest.raises(ValueError, match=r"levels must have shape \(steps \+ 1, 2\)"):
        cuda.Frames([(*plain, np.zeros((2, 3), np.float32))])
    with pytest.raises(ValueError, match=r"a course is \(rows, conditioned, adaptive, levels\)"):
        cuda.Frames([(rows(1),)])


def test_a_frame_has_each_slot_s_own_and_what_is_known_behind_its_step():
    levels = np.arange(6, dtype=np.float32).reshape(3, 2)
    adaptive = _core.Adaptive(0.5, 0.75, 2.0, blend="projected_clean", eta=0.25, norm_threshold=3.0)
    courses = [(rows(1, 1, 1), True), (rows(1, 3), True, adaptive, levels)]
    frames = cuda.Frames(courses)
    layout = cuda.frame_layout(2)
    widths = {"rows": 16, "next_rows": 16, "levels": 2, "guidance": 4}
    floats = (*widths, "ratio", "largest")

    def part(step, name):
        words = frames.words[step, layout[name] :][: 2 * widths.get(name, 1)]
        return words.view(np.float32 if name in floats else np.int32).reshape(2, -1)

    for step in range(3):
        assert part(step, "known_row").ravel().tolist() == [-1, 1 if step < 2 else -1]
        np.testing.assert_array_equal(part(step, "rows")[0], courses[0][0][step])
        assert part(step, "row_cond")[:, 0].tolist() == [0, 1 if step < 2 else -1]
        assert part(step, "row_uncond")[:, 0].tolist() == [-1, 2 if step == 1 else -1]
        assert part(step, "next_uncond")[:, 0].tolist() == [-1, 2 if step == 0 else -1]
        assert part(step, "guidance")[0, 0] == part(step, "ratio")[0] == 0
        if step == 2:
            continue
        np.testing.assert_array_equal(part(step, "levels")[1], levels[step + 1])
        assert part(step, "guidance")[1].tolist() == [0.5, 2, 0.25, 3.0]
        assert [part(step, name)[1, 0] for name in ("ratio", "largest")] == [0.75, 2.0]
    np.testing.assert_array_equal(part(0, "next_rows")[1], courses[1][0][1])


#: Of every kind of step: deterministic, with noise, with history, guided in part, of different lengths, at once.
SAMPLES = (
    (sf.samplers.ddim(support.SCHEDULE, 6, eta=1.0, guidance_scale=3.0), 2),
    (sf.samplers.dpmpp_2m(support.SCHEDULE, 5), 4),
    (sf.samplers.ddim(support.SCHEDULE, 7, guidance_scale=2.0, guidance_interval=(0.0, 0.5)), 5),
    (sf.samplers.ddpm(support.SCHEDULE, 4), None),
)
#: The same, and two with a second line.
MIXED_SAMPLES = (*SAMPLES, (support.two_line_table(5), 3), (support.two_line_table(6, noise=True), None))


def engine_s(samples, seeds):
    engine = support.make_engine()
    with engine:
        images = [
            engine.sample(1, cond=cond, table=table, seed=seed)
            for (table, cond), seed in zip(samples, seeds, strict=True)
        ]
    return np.concatenate(images).reshape(len(samples), support.ELEMENTS)


def network_of(samples, slot_rows, max_rows):
    labels = np.full(max_rows, support.NULL)
    for (conditioned, _), (_, cond) in zip(slot_rows, samples, strict=True):
        if conditioned >= 0:
            labels[conditioned] = cond

    def network(x, t):
        shaped = x.reshape(len(x), *support.SHAPE)
        return support.rowwise(shaped, t, {"class_labels": labels[: len(x)]}).reshape(x.shape)

    return network


def course(table, cond, levels=None):
    return np.asarray(table), cond is not None, table.adaptive_of(support.SHAPE), levels


def make_rig(rig, samples, seeds, levels=None, **options):
    courses = [course(*sample, levels) for sample in samples]
    slot_rows = cuda.Frames(courses).slot_rows
    options = {"max_rows": 8, "buckets": (8, 4, 2), **options}
    network = network_of(samples, slot_rows, options["max_rows"])
    return rig(courses, support.ELEMENTS, network=network, seeds=seeds, **options)


def begin(made, samples, seeds):
    noise = [_core.normal(seed, 0, 0, support.ELEMENTS) for seed in seeds]
    made.begin(noise, [table for table, _ in samples])


@FORMS
@pytest.mark.parametrize("samples", [SAMPLES, MIXED_SAMPLES], ids=["one line", "two lines too"])
def test_one_launch_gives_what_the_loop_gives(rig, fake, form, samples):
    seeds = [11, 12, 13, 14, 15, 16][: len(samples)]
    made = make_rig(rig, samples, seeds, max_rows=16, buckets=(16, 8, 4, 2))
    trajectory = made.trajectory(form)
    for _ in range(2):  # a graph can be launched again
        begin(made, samples, seeds)
        fake.log()
        trajectory.load(made.stream, made.frames)
        trajectory.launch(made.stream)
        names = fake.names()
        assert names.count("cuGraphLaunch") == 1
        assert "cuStreamSynchronize" not in names
        np.testing.assert_array_equal(made.result(), engine_s(samples, seeds))
    forwards = [made_by for made_by in made.host.ran if made_by[0] == "network"]
    assert len(forwards) == 2 * made.frames.steps


def test_unrolled_runs_the_smallest_forward_that_does(rig, fake):
    made = make_rig(rig, SAMPLES, [1, 2, 3, 4])
    trajectory = made.trajectory(Form.Unrolled)
    begin(made, SAMPLES, [1, 2, 3, 4])
    trajectory.load(made.stream, made.frames)
    trajectory.launch(made.stream)
    assert [rows for kind, rows in made.host.ran if kind == "network"] == [
        cuda.bucket_for([8, 4, 2], rows) for rows in made.frames.forward_rows
    ]


def test_a_loop_takes_fewer_steps_and_other_tables_without_being_built_again(rig, fake):
    seeds = [5, 6, 7, 8]
    made = make_rig(rig, SAMPLES, seeds)
    trajectory = made.trajectory(Form.While, steps=20)
    fake.log()
    for samples in (SAMPLES, tuple((sf.samplers.ddim(support.SCHEDULE, 3, guidance_scale=2.0), c) for _, c in SAMPLES)):
        made.frames = cuda.Frames([course(*sample) for sample in samples])
        made.host.network = network_of(samples, made.frames.slot_rows, made.max_rows)
        begin(made, samples, seeds)
        trajectory.load(made.stream, made.frames)
        trajectory.launch(made.stream)
        np.testing.assert_array_equal(made.result(), engine_s(samples, seeds))
    assert not {name for name in fake.names() if "Add" in name or "Instantiate" in name}


@FORMS
def test_the_nodes_are_those_of_the_plan(rig, fake, form):
    made = make_rig(rig, SAMPLES, [1, 2, 3, 4])
    fake.log()
    made.trajectory(form)
    added = [line.split()[:2] for line in fake.log() if line.startswith("cuGraphAdd")]
    if form == Form.Unrolled:
        pair = [["cuGraphAddChildGraphNode", "1"], ["cuGraphAddKernelNode", "fused_step_kernel"]]
        assert added == pair * made.frames.steps
    else:
        assert added == [
            ["cuGraphAddKernelNode", "stepfuse_advance"],
            ["cuGraphAddNode", "13"],
            ["cuGraphAddChildGraphNode", "1"],
            ["cuGraphAddKernelNode", "fused_step_kernel"],
            ["cuGraphAddKernelNode", "stepfuse_advance"],
        ]


@FORMS
@pytest.mark.parametrize("needs", [("noise", "guidance", "threshold", "keep"), ("threshold",), ("keep",), ("renorm",)])
def test_a_step_s_kernels_run_one_behind_the_other(rig, fake, form, needs):
    table = sf.samplers.ddim(support.SCHEDULE, 3, guidance_scale=3.0, eta=1.0 if "noise" in needs else 0.0)
    made = make_rig(rig, [(table, 2), (table, 4)], [1, 2])
    trajectory = made.trajectory(form, needs=cuda.StepNeeds(**dict.fromkeys(needs, True)))
    begin(made, [(table, 2), (table, 4)], [1, 2])
    trajectory.load(made.stream, made.frames)
    trajectory.launch(made.stream)
    of_a_step = ["network"]
    of_a_step += ["renormed_predictions"] if "renorm" in needs else []
    of_a_step += ["guidance_sums", "guided_rows"] if "guidance" in needs else []
    of_a_step += ["magnitude_counts", "thresholded_rows"] * 4 if "threshold" in needs else []
    of_a_step += ["step"] + (["keep_known"] if "keep" in needs else [])
    assert [name for name, _ in made.host.ran] == of_a_step * 3


@FORMS
def test_rows_are_adapted_once_however_often_a_trajectory_is_launched(rig, fake, form):
    """Frames stay as they were loaded: a second launch without a load gives the same bits."""
    table = sf.samplers.ddim(support.SCHEDULE, 4, guidance_scale=5.0)
    samples = [(table.adapt(guidance_rescale=0.7, dynamic_threshold=(0.8, 9.0)), cond) for cond in (2, 4)]
    made = make_rig(rig, samples, [1, 2])
    trajectory = made.trajectory(form)
    trajectory.load(made.stream, made.frames)
    drawn = []
    for _ in range(3):
        begin(made, samples, [1, 2])
        trajectory.launch(made.stream)
        drawn.append(made.result())
    want = engine_s(samples, [1, 2])
    for got in drawn:
        np.testing.assert_array_equal(got, drawn[0])
        np.testing.assert_allclose(got, want, rtol=0, atol=ADAPTED_SAMPLES * np.abs(want).max())
    assert np.abs(engine_s([(table, 2), (table, 4)], [1, 2]) - want).max() > 1e-2 * np.abs(want).max()


def test_a_loop_needs_a_driver_that_has_them(rig, fake):
    fake.set(version=12020)
    made = make_rig(rig, SAMPLES, [1, 2, 3, 4])
    assert not made.context.has_while_nodes
    message = r"a loop on the device \(a conditional WHILE node\) needs a driver for CUDA 12.4 or newer, .* CUDA 12.2"
    with pytest.raises(cuda.CudaError, match=message):
        made.trajectory(Form.While)
    made.trajectory(Form.Unrolled).load(made.stream, made.frames)


def test_a_previous_upload_is_waited_for_before_its_memory_is_written_again(rig, fake):
    made = make_rig(rig, SAMPLES, [1, 2, 3, 4])
    trajectory = made.trajectory(Form.Unrolled)
    fake.log()
    trajectory.load(made.stream, made.frames)
    assert fake.names() == ["cuGraphUpload", "cuMemcpyHtoDAsync", "cuEventRecord"]
    trajectory.load(made.stream, made.frames)
    assert fake.names() == ["cuEventSynchronize", "cuMemcpyHtoDAsync", "cuEventRecord"]


def plain(steps, slots=2, **options):
    return cuda.Frames([(rows(*[1] * steps, **options), True)] * slots)


@pytest.mark.parametrize(
    ("form", "frames", "message"),
    [
        pytest.param(Form.Unrolled, plain(2), "of 2 samples and 3 steps, got 2 and 2", id="fewer-steps-unrolled"),
        pytest.param(Form.While, plain(4), "of 2 samples and at most 3 steps, got 2 and 4", id="more-steps"),
        pytest.param(Form.While, plain(3, slots=1), "of 2 samples and at most 3 steps, got 1 and 3", id="slots"),
        pytest.param(
            Form.Unrolled,
            cuda.Frames([(rows(1, 3, 1), True)] * 2),
            "step 1 of this trajectory has 2 rows, got 4",
            id="rows",
        ),
    ],
)
def test_frames_of_another_plan_are_refused(rig, form, frames, message):
    made = rig([(rows(1, 1, 1), True)] * 2, 20, max_rows=2, buckets=(2,), network=None, seeds=[0, 0])
    with pytest.raises(ValueError, match=message):
        made.trajectory(form).load(made.stream, frames)


RESCALED = rows(3), True, _core.Adaptive(0.5)
THRESHOLDED = rows(1), True, _core.Adaptive(0.0, 0.9, 2.0)
KEPT = rows(1), True, _core.Adaptive(), np.zeros((2, 2), np.float32)


@pytest.mark.parametrize(
    ("course", "missing", "message"),
    [
        pytest.param((rows(1, noise=0.5), True), "seed", "a step adds noise: seed must be memory", id="noise"),
        pytest.param((rows(1) + np.eye(16, dtype=np.float32)[Q_H], True), "h", "uses history: h must be", id="history"),
        pytest.param(RESCALED, "sums", "a step adapts its guidance: sums must be memory", id="guidance"),
        pytest.param(KEPT, "known", "a step keeps a part of an image: known must be memory", id="keep"),
    ],
)
def test_what_a_step_reads_must_be_given(rig, course, missing, message):
    made = rig([course], 20, max_rows=2, buckets=(2,), network=None, seeds=[0])
    made.values[missing] = 0
    with pytest.raises(ValueError, match=message):
        made.trajectory(Form.Unrolled).load(made.stream, made.frames)


@pytest.mark.parametrize(
    ("course", "message"),
    [
        pytest.param((rows(1, noise=0.5), True), "a step adds noise, which this trajectory was built", id="noise"),
        pytest.param(RESCALED, "a step adapts its guidance, which", id="guidance"),
        pytest.param(THRESHOLDED, "a step has a dynamic threshold, which", id="threshold"),
        pytest.param(KEPT, "a step keeps a part of an image, which", id="keep"),
    ],
)
def test_what_a_trajectory_was_built_without_is_refused(rig, course, message):
    made = rig([course], 20, max_rows=2, buckets=(2,), network=None, seeds=[0])
    with pytest.raises(ValueError, match=message):
        made.trajectory(Form.Unrolled, needs=cuda.StepNeeds()).load(made.stream, made.frames)


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        pytest.param({}, "no kernel for steps without noise", id="plain"),
        pytest.param({"noise": True, "guidance": True}, "no kernel for adapted guidance", id="guidance"),
        pytest.param({"noise": True, "threshold": True}, "no kernel for dynamic_threshold", id="threshold"),
        pytest.param({"noise": True, "keep": True}, "no kernel for masks", id="keep"),
        pytest.param({"second": True}, "no kernel for rows with a second line", id="second"),
    ],
)
def test_what_a_step_needs_must_be_at_hand(rig, needs, message):
    course = np.pad(rows(1), ((0, 0), (0, 16))) if "second" in needs else rows(1)
    made = rig([(course, True)], 20, max_rows=1, buckets=(1,), network=None, seeds=[0])
    kernels = made.host.kernels(made.module)
    made.program = cuda.StepProgram({}, {1: kernels["fused_step_kernel"]})
    with pytest.raises(ValueError, match=message):
        made.trajectory(Form.Unrolled, needs=cuda.StepNeeds(**needs))
    with pytest.raises(ValueError, match="a step needs a kernel, without noise or with"):
        cuda.StepProgram({}, {})


def test_frames_and_the_trajectory_have_as_many_lines(rig):
    made = make_rig(rig, MIXED_SAMPLES[:4], [1, 2, 3, 4])
    trajectory = made.trajectory(Form.Unrolled)
    frames = cuda.Frames([course(*sample) for sample in MIXED_SAMPLES[2:]])
    with pytest.raises(ValueError, match="this trajectory is of tables without a second line"):
        trajectory.load(made.stream, frames)


def test_a_kernel_without_an_argument_is_refused(rig):
    made = rig([KEPT], 20, max_rows=1, buckets=(1,), network=None, seeds=[0])
    del made.values["known"]
    with pytest.raises(ValueError, match="the kernel takes known, which has no value"):
        made.trajectory(Form.Unrolled)


def test_a_trajectory_must_be_loaded_and_its_forwards_given(rig):
    made = rig([(rows(1), True)], 20, max_rows=2, buckets=(2,), network=None, seeds=[0])
    with pytest.raises(RuntimeError, match="must be loaded before it is launched"):
        made.trajectory(Form.Unrolled).launch(made.stream)
    plan = cuda.plan_trajectory(Form.Unrolled, 1, [1], [1])
    with pytest.raises(ValueError, match="there is no forward of 1 rows"):
        cuda.Trajectory(made.context, plan, made.program, made.frames.needs, made.values, made.forwards)


@pytest.mark.slow
@FORMS
def test_whatever_fails_half_way_everything_is_released_once(rig, fake, form):
    """Every call of a whole life is failed once: the error is raised, nothing is left, nothing is released twice."""

    table = sf.samplers.ddim(support.SCHEDULE, 2, eta=1.0, guidance_scale=3.0)
    samples = [(table.adapt(guidance_rescale=0.5, dynamic_threshold=(0.9, 2.0)), cond) for cond in (2, 4)]

    def life():
        made = make_rig(rig, samples, [1, 2], np.zeros((3, 2), np.float32), buckets=(4,), max_rows=4)
        made.put("known", np.zeros((2, 3, support.ELEMENTS), np.float32))
        trajectory = made.trajectory(form)
        begin(made, samples, [1, 2])
        trajectory.load(made.stream, made.frames)
        trajectory.launch(made.stream)
        return made.result()

    life()
    gc.collect()
    names = fake.names()
    assert len(names) == fake.calls
    for nth, name in enumerate(names):
        fake.reset()
        fake.fail(nth, 2)
        message = ""
        try:
            life()
        except cuda.CudaError as error:
            message = str(error)
        gc.collect()
        assert fake.violations == [], name
        assert fake.live == [], name
        # No call comes after the last releases that could raise their error.
        assert "CUDA_ERROR_OUT_OF_MEMORY" in message or name.endswith(
            ("Destroy", "Free", "FreeHost", "Unload", "Release")
        ), name
