"""Modules whose result depends on the number of rows, on earlier calls or on chance: refused, in torch's own words."""

import numpy as np
import onnx_ir
import onnxruntime
import pytest
import torch

import stepfuse as sf
from stepfuse.export import ExportError, to_bundle
from stepfuse.export.onnx.inputs import Input
from stepfuse.export.onnx.translation import translate

SCHEDULE = sf.NoiseSchedule.linear()


class Module(torch.nn.Module):
    """Calls a function with itself, x and t."""

    def __init__(self, fn):
        super().__init__()
        self.fn = fn
        self.calls = 0
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x, t):
        return self.fn(self, x, t)


def export(fn, path, **options):
    return to_bundle(Module(fn), shape=(2, 4, 4), schedule=SCHEDULE, out=path / "bundle", **options)


def doubled(x, condition):
    return x * 2 if condition else x * 1


def counted(module, x):
    module.calls += 1
    return x * module.calls


BRANCHES = {
    "more rows than": (
        lambda m, x, t: doubled(x, x.shape[0] > 4),
        r"torch's guard is rows <= 4 \(.*, which fails at 5 rows",
    ),
    "rows of the timestep": (lambda m, x, t: doubled(x, t.shape[0] > 4), "rows <= 4 .* fails at 5 rows"),
    "one number": (lambda m, x, t: doubled(x, x.shape[0] == 7), r"Ne\(rows, 7\) .* fails at 7 rows"),
    "many": (lambda m, x, t: doubled(x, x.shape[0] >= 64), "rows < 64 .* fails at 64 rows"),
    "elements": (lambda m, x, t: doubled(x, x.numel() > 1000), r"32\*rows <= 1000 .* fails at 32 rows"),
    "the number that it is captured at": (lambda m, x, t: doubled(x, x.shape[0] == 3), "inferred a static shape of 3"),
    "parts of eight": (
        lambda m, x, t: torch.cat([part * 1 for part in x.split(8)]),
        r"Eq\(\(\(rows \+ 7\)//8\), 1\) \(.* fails at 9 rows",
    ),
    "the first eight": (lambda m, x, t: torch.cat([x[:8], x[8:] * 2]), "rows < 8 .* fails at 8 rows"),
    "a loop": (lambda m, x, t: torch.cat([x[i : i + 1] * 2 for i in range(x.shape[0])]), "a static shape of 3"),
    "one row": (lambda m, x, t: doubled(x, x.shape[0] == 1), "the same prediction whatever rows are beside it"),
    "a row before": (lambda m, x, t: x.cumsum(0), "the same prediction whatever rows are beside it"),
    "a row behind": (lambda m, x, t: x.flip(0).cumsum(0).flip(0), "the same prediction whatever rows are beside it"),
    "one row squeezed": (lambda m, x, t: x.squeeze(0) * 2, r"the shape of x, \(1, 2, 4, 4\), got \(2, 4, 4\)"),
    "chance": (lambda m, x, t: x * torch.randn(len(x), 1, 1, 1), "the same for the same inputs: it is random"),
    "dropout": (lambda m, x, t: torch.nn.functional.dropout(x, 0.5, training=True), "it is random"),
    "calls before": (lambda m, x, t: counted(m, x), "or keeps state between calls"),
    "a buffer": (lambda m, x, t: x * 1 + 0 * m.count.add_(1), "must not change its buffers, got count"),
    "a timestep": (lambda m, x, t: doubled(x, t[0].item() > 3), "Could not guard on data-dependent expression"),
}


@pytest.mark.parametrize("case", BRANCHES)
def test_what_a_graph_cannot_follow_is_refused(case, tmp_path):
    fn, message = BRANCHES[case]
    with pytest.raises(ExportError, match=message):
        export(fn, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda m, x, t: doubled(x, x.shape[-1] > 32), r"satisfy the generated guard .*size\(\)\[3\] <= 32"),
        (lambda m, x, t: doubled(x, x.shape[-1] % 8 == 0), r"Ne\(Mod\(.*, 8\), 0\) .* fails at .* = 8"),
    ],
)
def test_a_branch_on_a_free_size_is_refused(fn, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        export(fn, tmp_path, dynamic_size=True)


class Positions(torch.nn.Module):
    """A table of eight positions, as a transformer's that takes pictures up to a size."""

    def __init__(self, most):
        super().__init__()
        self.most = most
        self.register_buffer("table", torch.arange(8.0))

    def forward(self, x):
        x = x + self.table[: x.shape[2]]
        return x * 2 if x.shape[2] > self.most else x * 3


def test_a_size_that_the_network_bounds_is_bounded_in_the_capture(tmp_path):
    """Unbounded, torch's guard that the table is long enough looks like a branch."""
    with pytest.raises(ExportError, match=r"satisfy the generated guard .*size\(\)\[2\] <= 8"):
        translate(Positions(8), [Input("x", (3, "width"))], ["y"], {"width": 4}, 18)
    bounded = [Input("x", (3, "width"), max_size=8)]
    model = translate(Positions(8), bounded, ["y"], {"width": 4}, 18)
    path = tmp_path / "positions.onnx"
    onnx_ir.save(model, path)
    session = onnxruntime.InferenceSession(path)
    for width in (2, 4, 7, 8):
        x = np.random.default_rng(width).standard_normal((5, 3, width), np.float32)
        want = Positions(8)(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(session.run(None, {"x": x})[0], want, rtol=1e-6)
    with pytest.raises(ExportError, match=r"size\(\)\[2\] <= 6|fails at"):
        translate(Positions(6), bounded, ["y"], {"width": 4}, 18)


def test_a_module_without_such_branches_gives_what_torch_gives_at_any_number_of_rows(tmp_path):
    module = Module(lambda m, x, t: torch.where((t > 500)[:, None, None, None], x, -x * t.cos()[:, None, None, None]))
    bundle = to_bundle(module, shape=(2, 4, 4), schedule=SCHEDULE, out=tmp_path / "bundle")
    rng = np.random.default_rng(0)
    session = onnxruntime.InferenceSession(bundle.denoiser)
    for rows in (1, 2, 3, 64, 65):
        x, t = rng.standard_normal((rows, 2, 4, 4), np.float32), rng.uniform(0, 1000, rows).astype(np.float32)
        want = module(torch.from_numpy(x), torch.from_numpy(t)).numpy()
        np.testing.assert_allclose(session.run(None, {"sample": x, "timestep": t})[0], want, atol=1e-5)
    assert module.count == 0


def test_a_buffer_that_a_refused_module_changed_is_restored(tmp_path):
    module = Module(lambda m, x, t: x * 1 + 0 * m.count.add_(1))
    with pytest.raises(ExportError, match="buffers"):
        to_bundle(module, shape=(2, 4, 4), schedule=SCHEDULE, out=tmp_path / "bundle")
    assert module.count == 0


def test_a_module_that_fails_at_another_number_of_rows_says_which(tmp_path):
    def fn(module, x, t):
        if not torch.compiler.is_exporting() and x.shape[0] == 5:
            raise ValueError("no five")
        return x * 2

    with pytest.raises(ExportError, match="the module fails at 5 rows in torch: ValueError: no five"):
        export(fn, tmp_path)
