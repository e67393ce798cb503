"""Which configuration is chosen for a step on torch tensors. That it is the fastest is measured on a GPU."""

import contextlib

import pytest

import stepfuse.kernels
from stepfuse.kernels.configs import ALIGNED_LAYOUTS, LARGE, SMALL, UNALIGNED, WIDE, config_for

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton", reason="Triton is not installed: it comes for x86-64 Linux")

N = 32


@pytest.fixture
def tune():
    return stepfuse.kernels.tune


@pytest.fixture
def timed(monkeypatch):
    """``timed(milliseconds)`` fakes the time of each configuration, and returns the steps that are timed."""
    from stepfuse.kernels import tuning

    runs = []

    def step(x, prediction, rows, *, config, **others):
        runs.append((config, x, others))
        others["out"].add_(1)

    def make(milliseconds):
        def bench(run, **options):
            run()
            return milliseconds[runs[-1][0]]

        monkeypatch.setenv("TRITON_INTERPRET", "0")
        monkeypatch.setattr(tuning, "fused_step", step)
        monkeypatch.setattr(tuning, "require_state", lambda *_: None)  # which would ask for CUDA tensors
        monkeypatch.setattr(tuning, "on_device", lambda _: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(triton.testing, "do_bench_cudagraph", bench)
        return runs

    return make


def arguments(n=N):
    return torch.ones(2, n), torch.zeros(2, n), torch.zeros(16)


@pytest.mark.parametrize("fastest", ALIGNED_LAYOUTS.values(), ids=ALIGNED_LAYOUTS)
def test_the_fastest_is_chosen_and_nothing_given_is_changed(tune, timed, fastest):
    runs = timed({config: 1.0 if config == fastest else 2.0 for config in ALIGNED_LAYOUTS.values()})
    x, prediction, rows = arguments()
    h = torch.full_like(x, 3.0)
    assert tune(x, prediction, rows, out=x, h=h) == fastest
    assert [config for config, _, _ in runs] == list(ALIGNED_LAYOUTS.values())
    for _, state, others in runs:
        assert others["out"] is state  # in place, as it was given
        assert others["h"] is not h
    assert (x == 1).all()
    assert (state == 1 + len(runs)).all()


@pytest.mark.parametrize(("n", "usual"), [(N, SMALL), (1 << 17, LARGE)])
def test_of_equals_the_rule_of_thumb_s_is_chosen(tune, timed, n, usual):
    timed(dict.fromkeys(ALIGNED_LAYOUTS.values(), 1.0))
    x, prediction, rows = arguments(n)
    assert tune(x, prediction, rows, out=x) == usual == config_for(2, n)


def test_where_samples_are_not_aligned_there_is_one(tune, timed):
    runs = timed({})
    assert tune(*arguments(111)) == UNALIGNED
    assert runs == []


def test_refuses(tune, device, monkeypatch):
    x, prediction, row = (tensor.to(device) for tensor in arguments())
    if device == "cpu":
        with pytest.raises(ValueError, match="nothing can be timed under TRITON_INTERPRET"):
            tune(x, prediction, row)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(TypeError, match="config must be left out"):
        tune(x, prediction, row, config=WIDE)
    with pytest.raises(ValueError, match="x must be a CUDA tensor, got one on cpu"):
        tune(x.cpu(), prediction, row)
