"""Fits the tables that come with the model ``fashion``, and writes them into its bundle.

    python examples/fashion/tables.py                     # all: two hours on two cores; goes on where it was stopped
    python examples/fashion/tables.py --compare           # beside samplers made by hand, on 500 noises

What is fitted already lies in ``build/fashion_tables``, and so does what ``--compare`` finds. A fit that is ended early
leaves its best round, a ``.partial``: those of 6 and 10 steps at guidance 3 and of 10 unguided were taken from such.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

import stepfuse as sf
from stepfuse.analysis import Judge
from stepfuse.fitting import compare as against

HERE = Path(__file__).parent
KEPT = HERE.parents[1] / "build" / "fashion_tables"
BUNDLE = HERE.parents[1] / "engine" / "models" / "fashion"
#: Steps and guidance scale of each, and the noises that it is fitted to: under guidance few are fitted too well.
TABLES = (*((steps, 1.0, 128) for steps in (5, 6, 8, 10)), *((steps, 3.0, 192) for steps in (5, 6, 8, 10)))
COMPARED = 500  # noises, and samples that the judge sees


def main(
    compare: Annotated[bool, typer.Option(help="measure, fit nothing")] = False,
    threads: Annotated[int, typer.Option(help="of the network")] = 0,
) -> None:
    """Fits, or compares; see the module."""
    with sf.Engine.load(sf.Bundle.load(BUNDLE), threads=threads) as engine:
        if compare:
            (KEPT / "compared.json").write_text(json.dumps(measured(engine), indent=2) + "\n")
            return
        tables = {f"fitted-{steps}-{scale:g}.npz": fitted(engine, steps, scale, many) for steps, scale, many in TABLES}
    bundle = sf.Bundle.load(BUNDLE)
    sf.write_bundle(
        BUNDLE,
        name=bundle.name,
        info=replace(bundle.info, tables=tables),
        files={name: BUNDLE / name for name in bundle.files if name not in bundle.info.tables},
        provenance=bundle.provenance,
        licence=bundle.licence,
        export=bundle.export or None,
        overwrite=True,
    )


def fitted(engine: sf.Engine, steps: int, scale: float, samples: int) -> sf.StepTable:
    """A table, fitted unless it was already."""
    path = KEPT / f"fitted-{steps}-{scale:g}.npz"
    if not path.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        table = sf.fit(
            engine,
            steps,
            guidance_scale=scale,
            samples=samples,
            checkpoint=path.with_suffix(".partial"),
            progress=lambda text: print(f"{path.stem}: {text}", flush=True),
        )
        table.save(path)
    return sf.StepTable.load(path)


def measured(engine: sf.Engine) -> list[dict[str, object]]:
    """Each table of the bundle beside the best sampler made by hand: error, and the judge's distance."""
    judge, found = Judge.load("fashion"), []
    for table in engine.info.tables.values():
        ranked = against(engine, table, samples=COMPARED, judge=judge.distance)
        own = next(one for one in ranked if one.name == table.sampler)
        best = next(one for one in ranked if one.name != table.sampler)
        row = {"steps": len(table), "guidance_scale": table.options["guidance_scale"]}
        for name, one in (("fitted", own), ("best_by_hand", best)):
            row[name] = {"name": one.name, "error": one.error, "distance": one.distance}
        print(json.dumps(row), flush=True)
        found.append({**row, "ratio": own.error / best.error})
    return found


if __name__ == "__main__":
    typer.run(main)
