"""Tables and conclusions of a benchmark, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from stepfuse.benchmarking.comparison import Compared
from stepfuse.benchmarking.result import NOISY, BenchResult, Case, latency_percentiles
from stepfuse.benchmarking.timing import percentile
from stepfuse.cli.console import shown
from stepfuse.display import byte_size

_VERDICTS = {
    "slower": "[red]slower[/]",
    "faster": "[green]faster[/]",
    "unclear": "unclear",
    "noisy": "[yellow]noisy[/]",
}


def tables(result: BenchResult) -> Iterator[tuple[str, Table]]:
    """What was measured, a title and a table a kind."""
    yield "a forward of the bare network", _forwards(result)
    yield f"runs of the engine, {result.facts.get('sampler', '')}, no guidance", _runs(result)
    if result.errors:
        yield "difference from ONNX Runtime in float32, root mean square", _errors(result)
    if result.starts:
        yield "fresh processes, to the first image of one step", _starts(result)
    if result.loads:
        yield f"requests that arrive at random, {result.loads[0].steps} steps each", _loads(result)


def compared_table(compared: Compared) -> Table:
    """Every case of two results."""
    table = _table("", "rows", "steps", right=("ratio", "95 % interval", "verdict"))
    for one in compared.cases:
        table.add_row(
            shown(one.case.configuration),
            str(one.case.rows),
            str(one.case.steps) if one.case.steps else "forward",
            f"{one.ratio:.3f}",
            f"{one.low:.3f} - {one.high:.3f}",
            _VERDICTS.get(one.verdict, one.verdict),
        )
    return table


def conclusions(result: BenchResult) -> Iterator[str]:
    """What the times say, and where they do not, in a line each."""
    for rows, steps in dict.fromkeys(case.work for case in result.cases if case.steps):
        found = [case for case in result.cases if case.work == (rows, steps)]
        together = f"{rows} image{'' if rows == 1 else 's'} together, {steps} step{'' if steps == 1 else 's'}"
        if len(found) < 2:
            continue
        if (best := result.fastest(rows, steps)) is not None:
            yield f"{together}: {best} is the fastest"
        elif noisy := [str(case.configuration) for case in found if case.noisy]:
            yield f"{together}: no conclusion, too noisy: {'; '.join(noisy)}"
        else:
            yield f"{together}: no conclusion, the two fastest do not differ beyond chance"
    for name, reason in result.failures.items():
        yield f"{name} failed: {reason}"
    if result.noisy:
        yield (
            f"noisy: {len(result.noisy)} of {len(result.cases)} cases, whose times from the 20th to the 80th percentile"
            f" spread by more than {NOISY:.0%} of their median; nothing is concluded from these. Leave the machine"
            " alone, or measure for longer"
        )
    load, cores = result.facts.get("load_average_before", 0.0), result.facts["machine"]["cores"]
    if load > 0.5 * cores:
        yield f"the machine was at work before: a load average of {load:.1f} on {cores} cores"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= scale:
            return f"{seconds / scale:.2f} {unit}"
    return f"{seconds * 1e6:.0f} us"


def _forwards(result: BenchResult) -> Table:
    table = _table(
        "",
        "rows",
        right=("median", "p95", "spread", "x first (p20 to p80)", "cost curve"),
    )
    for case in result.cases:
        if not case.steps:
            cost = result.costs.get(case.configuration)
            line = "" if cost is None else f"{duration(cost.fixed)} + {duration(cost.row)} a row"
            is_first_row = case is result.case(case.configuration, min(one.rows for one in result.cases))
            times = _times(case, case.per_forward)
            table.add_row(*_named(case), *times, _times_first(result, case), line if is_first_row else "")
    return table


def _runs(result: BenchResult) -> Table:
    table = _table(
        *("", "rows", "steps"),
        right=("median", "p95", "spread", "images/s", "above the forward, a step", "x first (p20 to p80)"),
    )
    for case in result.cases:
        if case.steps:
            above = _range([duration(percentile(result.overhead(case), p)) for p in (20, 50, 80)])
            rate = f"{case.images_per_second:.4g}"
            times = _times_first(result, case)
            table.add_row(*_named(case), str(case.steps), *_times(case, case.seconds), rate, above, times)
    return table


def _errors(result: BenchResult) -> Table:
    table = _table("", right=("prediction", "images"))
    for one in result.errors:
        table.add_row(shown(one.configuration), *(f"{100 * error:.2g} %" for error in (one.prediction, one.images)))
    return table


def _starts(result: BenchResult) -> Table:
    table = _table("", right=("median", "most", "peak memory"))
    for one in result.starts:
        seconds = (duration(percentile(one.seconds, 50)), duration(max(one.seconds)))
        table.add_row(shown(one.configuration), *seconds, byte_size(max(one.peak_bytes)))
    return table


def _loads(result: BenchResult) -> Table:
    table = _table(
        "",
        right=("offered/s", "images/s", "p50", "p95", "p99", "unanswered"),
    )
    for one in result.loads:
        times = latency_percentiles(one.latencies) or dict.fromkeys(("p50", "p95", "p99"), float("nan"))
        rates = (f"{one.rate:.4g}", f"{one.images_per_second:.4g}")
        bound = ">= " if one.unanswered else ""  # those without an answer waited longer
        table.add_row(
            shown(one.configuration), *rates, *(bound + duration(t) for t in times.values()), str(one.unanswered)
        )
    return table


def _table(*left: str, right: tuple[str, ...]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table


def _named(case: Case) -> tuple[str, str]:
    return shown(case.configuration), str(case.rows)


def _times(case: Case, seconds: Sequence[float]) -> tuple[str, str, str]:
    spread = f"{case.spread:.0%}"
    return (
        duration(percentile(seconds, 50)),
        duration(percentile(seconds, 95)),
        f"[yellow]{spread} noisy[/]" if case.noisy else spread,
    )


def _times_first(result: BenchResult, case: Case) -> str:
    if case.configuration == result.configurations[0]:
        return ""
    found = result.times_first(case)
    return _range([f"{percentile(found, p):.2f}" for p in (20, 50, 80)])


def _range(texts: Sequence[str]) -> str:
    """The 20th, 50th and 80th percentile."""
    low, middle, high = texts
    return f"{middle} ({low} to {high})"
