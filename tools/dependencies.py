"""What a user's installation brings along: whether the licences are accepted, and a bill of materials (CycloneDX).

    python tools/dependencies.py [--sbom FILE]

Walks from stepfuse's base dependencies and those of the extras that users install to all that these require, as
installed in this Python's environment. Licences are read from each package's metadata and compared with
``licences.toml``. Exits with 1 and the names of those that are not accepted.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
LICENCES = Path(__file__).with_name("licences.toml")
OF_DEVELOPERS = {"dev", "release", "test"}


def walk() -> tuple[dict[str, Distribution], set[str]]:
    """All distributions that base and extras lead to, by name, and names of those that are not installed here."""
    found: dict[str, Distribution] = {}
    absent: set[str] = set()
    root = distribution("stepfuse")
    extras = set(root.metadata.get_all("Provides-Extra") or ()) - OF_DEVELOPERS
    left, seen = [("stepfuse", frozenset(extras))], set()
    while left:
        name, wanted = left.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            absent.add(name)
            continue
        left += required(found[name], wanted)
    del found["stepfuse"]
    return found, absent


def required(package: Distribution, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Names and extras of what a package needs on this Python and system."""
    for line in package.requires or ():
        need = Requirement(line)
        environments = [{"extra": extra} for extra in ("", *extras)]
        if need.marker is None or any(need.marker.evaluate(one) for one in environments):
            yield canonicalize_name(need.name), frozenset(need.extras)


def licence(package: Distribution) -> str:
    """As the metadata has it: an expression, classifiers, or a short text; empty if there is none of these."""
    metadata = package.metadata
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classifiers = [one for one in metadata.get_all("Classifier") or () if one.startswith("License ::")]
    named = [one.rpartition(" :: ")[2] for one in classifiers if one != "License :: OSI Approved"]
    if named:
        return " OR ".join(named)
    text = str(metadata.get("License") or "").strip()
    return text if "\n" not in text and len(text) < 100 else ""


def accepts(licence: str, accepted: set[str]) -> bool:
    """Whether an expression is accepted: one side of each OR, both sides of an AND."""
    licence = licence.strip()
    if licence in accepted:
        return True
    if " AND " in licence and "(" not in licence:
        return all(accepts(one, accepted) for one in licence.split(" AND "))
    if " OR " in licence and "(" not in licence:
        return any(accepts(one, accepted) for one in licence.split(" OR "))
    return False


def is_excepted(name: str, patterns: Iterable[str]) -> bool:
    """Whether a package is named, or begins as one of those does that end in a star."""
    return any(fnmatch(name, one) for one in patterns)


def write_sbom(names: set[str], out: Path) -> None:
    """The environment's bill of materials, less what is not among ``names``."""
    described = ["-m", "cyclonedx_py", "environment", "--pyproject", ROOT / "pyproject.toml", sys.executable]
    text = subprocess.run([sys.executable, *described], check=True, stdout=subprocess.PIPE, text=True).stdout
    bill = json.loads(text)
    bill["components"] = [one for one in bill["components"] if canonicalize_name(one["name"]) in names]
    kept = {one["bom-ref"] for one in (bill["metadata"]["component"], *bill["components"])}
    bill["dependencies"] = [
        {**one, **({"dependsOn": left} if (left := [ref for ref in one.get("dependsOn", ()) if ref in kept]) else {})}
        for one in bill["dependencies"]
        if one["ref"] in kept
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(bill, indent=2) + "\n")
    print(f"{out}: {len(bill['components'])} packages")


def main() -> None:
    """Checks the licences; writes the bill if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sbom", type=Path, help="where to write the bill of materials")
    options = parser.parse_args()
    found, absent = walk()
    rules = tomllib.loads(LICENCES.read_text(encoding="utf-8"))
    licences = {name: licence(package) for name, package in found.items() if not is_excepted(name, rules["excepted"])}
    refused = {name: text for name, text in licences.items() if not accepts(text, set(rules["accepted"]))}
    print(f"{len(found)} packages; not installed here, so not checked: {', '.join(sorted(absent)) or 'none'}")
    if options.sbom:
        write_sbom(set(found), options.sbom)
    for name, text in sorted(refused.items()):
        print(f"{name} {found[name].version}: its licence, {text or 'not named'!r}, is not in {LICENCES.name}")
    sys.exit(1 if refused else 0)


if __name__ == "__main__":
    main()
