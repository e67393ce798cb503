"""The wheel: it holds everything, and samples in a fresh environment of the base dependencies alone."""

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

import stepfuse._core

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
pytestmark = pytest.mark.slow  # a wheel is built and installed

FOLDERS = {"engine": "stepfuse", "kernels": "stepfuse/kernels", "export": "stepfuse/export"}


def run(*command, cwd, ok=True):
    """Standard output of a command that succeeds, or standard error of one that must not."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout if ok else done.stderr


def tracked(*patterns):
    listed = run("git", "ls-files", "-z", *patterns, cwd=ROOT).split("\0")
    return [name for name in listed if name and (ROOT / name).is_file()]


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """A copy of the tracked sources, so that nothing untracked helps."""
    source = tmp_path_factory.mktemp("source")
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    return source


def build_wheel(source, out):
    """With the core that is installed: compiled by the same ``setup.py``; setuptools takes what is newer than its
    sources."""
    core = Path(stepfuse._core.__file__).resolve()
    built = source / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}" / "stepfuse" / core.name
    built.parent.mkdir(parents=True)
    shutil.copyfile(core, built)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", out]
    run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=out)
    [built] = out.iterdir()
    return built


@pytest.fixture(scope="session")
def wheel(sources, tmp_path_factory):
    return build_wheel(sources, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def python(wheel, tmp_path_factory):
    """The interpreter of a fresh environment with the wheel and its base dependencies."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--constraint", LOCK, wheel, cwd=folder)
    return python


@pytest.fixture(scope="session")
def python_with_text(python, wheel):
    """The same interpreter, for prompts."""
    run(python, "-m", "pip", "install", "--quiet", "--constraint", LOCK, f"{wheel}[text]", cwd=wheel.parent)
    return python


def test_the_wheel_holds_every_module_and_model(wheel):
    data = ("engine/py.typed", "engine/models", "engine/analysis/data", "engine/server/*.html")
    sources = tracked("engine/*.py", "engine/*.pyi", *data, "kernels/*.py", "export/*.py")
    expected = {str(FOLDERS[Path(name).parts[0]] / Path(*Path(name).parts[1:])) for name in sources}
    held = set(zipfile.ZipFile(wheel).namelist())
    assert expected - held == set()
    assert [name for name in held if name.startswith("stepfuse/_core.")]
    assert {name.split("/")[0].split("-")[0] for name in held} == {"stepfuse"}


def test_the_source_distribution_builds_the_same_wheel(sources, wheel, tmp_path):
    code = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    run(sys.executable, "-c", code, tmp_path, cwd=sources)
    [packed] = tmp_path.iterdir()
    shutil.unpack_archive(packed, tmp_path / "unpacked")
    [source] = (tmp_path / "unpacked").iterdir()
    (tmp_path / "wheel").mkdir()
    with zipfile.ZipFile(build_wheel(source, tmp_path / "wheel")) as again, zipfile.ZipFile(wheel) as first:
        assert {one.filename: one.CRC for one in again.infolist()} == {
            one.filename: one.CRC for one in first.infolist()
        }


def test_a_fresh_environment_samples_encodes_and_draws(python, tmp_path):
    alone = shutil.copy(ROOT / "tools" / "smoke.py", tmp_path)
    assert "sample, encode, command line" in run(python, alone, cwd=tmp_path)


SAMPLE = """
import sys, numpy as np, stepfuse as sf
engine = sf.Engine.from_callable(lambda x, t, cond: 0.1 * x, shape=(3, 8, 8), schedule=sf.NoiseSchedule.linear())
images = engine.sample(2, steps=4, seed=1)
assert images.shape == (2, 3, 8, 8) and np.isfinite(images).all()
"""

SAMPLE_EMBEDDED = """
import sys, numpy as np, stepfuse as sf
for name in sf.embedded_models():
    with sf.Engine.load(name) as engine:
        images = engine.sample(2, steps=3, seed=1)
    assert images.shape == (2, *engine.info.shape) and np.isfinite(images).all()
print(*sf.embedded_models())
"""


JUDGE_EMBEDDED = """
import sys, numpy as np, stepfuse as sf
from stepfuse.analysis import Judge
judge = Judge.for_model("fashion")
assert judge.accuracy(judge.real_images, judge.real_labels) > 0.9 and judge.distance(judge.real_images) > 0
assert not {"matplotlib", "onnx", "scipy", "torch"} & set(sys.modules)
"""


def test_a_fresh_environment_samples_without_torch(python, tmp_path):
    assert "No module named 'torch'" in run(python, "-c", "import torch", cwd=tmp_path, ok=False)
    run(python, "-c", SAMPLE, cwd=tmp_path)


def test_a_fresh_environment_samples_every_embedded_model(python, tmp_path):
    names = {Path(name).parts[2] for name in tracked("engine/models")}
    assert set(run(python, "-c", SAMPLE_EMBEDDED, cwd=tmp_path).split()) == names


def test_a_fresh_environment_judges_without_an_extra(python, tmp_path):
    run(python, "-c", JUDGE_EMBEDDED, cwd=tmp_path)


def test_the_command_line_is_installed(python, tmp_path):
    assert "doctor" in run(python.with_name("stepfuse"), "--help", cwd=tmp_path)


PROMPT = ["--prompt", "a red cat", "--negative-prompt", "a dog"]
DRAWN = {
    "DDPMPipeline": [],
    "DDIMPipeline": [],
    "DiTPipeline": ["--cond", "3"],
    **dict.fromkeys(
        [
            "StableDiffusionPipeline",
            "StableDiffusionPipeline-v",
            "StableDiffusionXLPipeline",
            "StableDiffusion3Pipeline",
            "StableDiffusion3Pipeline-3.5",
        ],
        PROMPT,
    ),
    **dict.fromkeys(["FluxPipeline", "FluxPipeline-schnell", "LatentConsistencyModelPipeline"], PROMPT[:2]),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_fresh_environment_draws_what_was_exported_in_another(python_with_text, exported, name, tmp_path):
    drawn = ["sample", exported(name).path, *DRAWN[name], "-n", 2, "--steps", 4, "--threads", 1]
    run(python_with_text.with_name("stepfuse"), *drawn, "-o", "fresh.npy", cwd=tmp_path)
    run(Path(sys.executable).with_name("stepfuse"), *drawn, "-o", "here.npy", cwd=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "fresh.npy"), np.load(tmp_path / "here.npy"))
    for package in ("torch", "transformers", "diffusers"):
        assert f"No module named '{package}'" in run(
            python_with_text, "-c", f"import {package}", cwd=tmp_path, ok=False
        )


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_refuses_to_be_imported_under_its_bare_name(python, folder):
    # Not on import alone: in the clone's folder transformers looks here for the package kernels.
    code = {"kernels": "import kernels; from kernels import fused_step"}.get(folder, f"import {folder}")
    error = run(python, "-B", "-c", code, cwd=ROOT, ok=False)
    assert f"ImportError: this folder installs as '{FOLDERS[folder].replace('/', '.')}'" in error
