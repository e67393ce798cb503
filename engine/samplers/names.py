"""Samplers by their names, what other libraries call them, and their steps in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from stepfuse.display import did_you_mean

# Names without case, signs and "Scheduler", with "++" as "pp".
_ELSEWHERE = {
    "dpmsolvermultistep": "dpmpp_2m",
    "dpmpp": "dpmpp_2m",
    "dpmpp2m": "dpmpp_2m",
    "dpmpp2mkarras": "dpmpp_2m with karras=True",
    "dpmsolverpp2m": "dpmpp_2m",
    "dpmpp2msde": "dpmpp_2m_sde",
    "dpmpp2msdegpu": "dpmpp_2m_sde",
    "dpmpp2msdeheun": "dpmpp_2m_sde with solver_type='heun'",
    "dpmpp2msdekarras": "dpmpp_2m_sde with karras=True",
    "sdedpmsolverpp": "dpmpp_2m_sde",
    "dpmpp3msde": "dpmpp_3m_sde",
    "sasolver": "sa_solver",
    "dpmppsde": "dpmpp_sde",
    "dpmppsdegpu": "dpmpp_sde",
    "dpmppsdekarras": "dpmpp_sde with karras=True",
    "dpmsolversde": "dpmpp_sde",
    "dpmpp3msdegpu": "dpmpp_3m_sde",
    "dpmpp3msdekarras": "dpmpp_3m_sde with karras=True",
    "dpmsolverpp": "dpmpp_2m",
    "flowmatcheulerdiscrete": "euler",
    "flowmatcheuler": "euler",
    "flowmatchheundiscrete": "heun",
    "flowmatchlcm": "lcm",
    "edmeuler": "edm_euler",
    "edmdpmsolvermultistep": "edm_dpmpp_2m",
    "cmstochasticiterative": "cm",
    "eulerdiscrete": "euler",
    "keuler": "euler",
    "eulercfgpp": "euler with cfg_pp=True",
    "ddimcfgpp": "ddim with cfg_pp=True",
    "eulerkarras": "euler with karras=True",
    "eulera": "euler_ancestral",
    "keulera": "euler_ancestral",
    "eulerancestral": "euler_ancestral",
    "eulerakarras": "euler_ancestral with karras=True",
    "eulerancestraldiscrete": "euler_ancestral",
    "heundiscrete": "heun",
    "kheun": "heun",
    "heunkarras": "heun with karras=True",
    "deismultistep": "deis",
    "pndm": "plms",
    "kplms": "plms",
    "kdpm2discrete": "kdpm2",
    "kdpm2ancestraldiscrete": "kdpm2_ancestral",
    "dpm2": "kdpm2",
    "kdpm2karras": "kdpm2 with karras=True",
    "dpm2karras": "kdpm2 with karras=True",
    "dpm2a": "kdpm2_ancestral",
    "dpm2ancestral": "kdpm2_ancestral",
    "dpm2akarras": "kdpm2_ancestral with karras=True",
    "dpmsolversinglestep": "dpmpp_2s",
    "dpmpp2s": "dpmpp_2s",
    "dpmpp3s": "dpmpp_2s with order=3",
    "dpmsolverpp2s": "dpmpp_2s",
    "lmsdiscrete": "lms",
    "klms": "lms",
    "lmskarras": "lms with karras=True",
    "unipcmultistep": "unipc",
    "unipcbh2": "unipc",
    "unipcbh1": "unipc with solver_type='bh1'",
    "unipckarras": "unipc with karras=True",
}


def require_sampler(name: object, known: Collection[str], where: str = "") -> None:
    """Refuses a name that is none of ``known``, and says what a name of another library is called here.

    Args:
        name: What is given.
        known: Names of samplers.
        where: Words behind them, such as ``" for FlowMatchEulerDiscreteScheduler"``.

    Raises:
        ValueError: If it is none of them.
    """
    if isinstance(name, str) and name in known:
        return
    hint = ""
    if isinstance(name, str):
        plain = "".join(letter for letter in name.lower().replace("++", "pp") if letter.isalnum())
        plain = plain.removesuffix("scheduler")
        ours = plain if plain in known else _ELSEWHERE.get(plain, "")
        hint = f" (here: {ours})" if ours.partition(" ")[0] in known else did_you_mean(name, known)
    raise ValueError(f"sampler must be one of {', '.join(known)}{where}, got {name!r}{hint}")


def steps_asked(options: Mapping[str, Any], rows: int) -> int:
    """Steps that a sampler was asked for; with ``heun`` and ``plms`` one may take more than a row.

    Args:
        options: The sampler's arguments (``StepTable.options``); without ``steps`` among them it is ``rows``.
        rows: Rows of its table.
    """
    asked = options.get("steps")
    return asked if isinstance(asked, int) else rows


def steps_in_words(options: Mapping[str, Any], rows: int, done: int | None = None) -> str:
    """``10 steps``, ``10 steps in 11 forwards``, and ``7 of 10 steps`` where a run was begun late or stopped early.

    Args:
        options: As in ``steps_asked``.
        rows: Rows of the whole table, a forward each.
        done: Rows that were run; None is all.
    """
    steps, part = steps_asked(options, rows), "" if done in (None, rows) else f"{done} of "
    return f"{part}{rows} steps" if steps == rows else f"{steps} steps in {part}{rows} forwards"
