"""Samplers by their names, and what other libraries call them."""

from __future__ import annotations

from collections.abc import Collection

from stepfuse.display import did_you_mean

# Names without case, signs and "Scheduler", with "++" as "pp".
_ELSEWHERE = {
    "dpmsolvermultistep": "dpmpp_2m",
    "dpmpp": "dpmpp_2m",
    "dpmpp2m": "dpmpp_2m",
    "dpmpp2mkarras": "dpmpp_2m with karras=True",
    "dpmsolverpp2m": "dpmpp_2m",
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
    "eulerancestraldiscrete": "euler_ancestral",
    "heundiscrete": "heun",
    "kheun": "heun",
    "heunkarras": "heun with karras=True",
    "deismultistep": "deis",
    "pndm": "plms",
    "kplms": "plms",
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
