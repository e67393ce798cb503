"""Who may know of whom: includes of the core, and the direction of imports."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASE = {"numpy", "onnxruntime", "PIL", "rich", "typer"}  # the import names of pyproject's base dependencies
INTEGRATED = {  # what the modules of a folder, or a file, may import too, being loaded on use
    "diffusers": {"diffusers", "torch"},
    "torch.py": {"torch"},
}


def modules(*folders):
    return [
        pytest.param(path, id=str(path.relative_to(ROOT))) for f in folders for path in sorted((ROOT / f).rglob("*.py"))
    ]


def imported(path, *, lazily):
    """Names of the modules that a file imports, at its top level or anywhere."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if lazily else top_level(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top_level(tree):
    """Every statement that runs on import: all but the bodies of functions, and what only type checkers read."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from top_level(node)


def within(name, package):
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("path", modules("engine"))
def test_the_engine_imports_base_dependencies_alone(path):
    names = {name.split(".")[0] for name in imported(path, lazily=False)}
    also = INTEGRATED.get(path.parent.name, set()) | INTEGRATED.get(path.name, set())
    assert names <= BASE | also | {"stepfuse"} | set(sys.stdlib_module_names)


def test_the_cuda_back_end_loads_torch_and_triton_when_a_module_is_given():
    code = "import sys, stepfuse.backends.cuda; assert not {'torch', 'triton'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "tests")


def test_integrations_load_what_they_are_for_when_it_is_used():
    code = "import sys, stepfuse.integrations.diffusers; assert not {'torch', 'diffusers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "tests")


@pytest.mark.parametrize("path", modules("engine"))
def test_only_the_command_line_knows_of_export(path):
    if "cli" not in path.parts:
        assert not [name for name in imported(path, lazily=True) if within(name, "stepfuse.export")]


@pytest.mark.parametrize("path", modules("kernels"))
def test_kernels_know_of_nothing_but_themselves(path):
    ours = [name for name in imported(path, lazily=True) if within(name, "stepfuse")]
    assert [name for name in ours if not within(name, "stepfuse.kernels")] == []


@pytest.mark.parametrize(
    "path", sorted(path for path in (ROOT / "csrc/core").rglob("*") if path.is_file()), ids=lambda path: path.name
)
def test_the_core_is_plain_cpp(path):
    includes = re.findall(r'#\s*include\s*[<"]([^>"]+)', path.read_text())
    assert [name for name in includes if re.search(r"pybind11|Python\.h|cuda|cudnn|nvrtc", name, re.IGNORECASE)] == []


def test_sampling_leaves_the_extras_alone():
    code = """
import sys, stepfuse as sf
engine = sf.Engine.from_callable(lambda x, t, cond: x, shape=(2,), schedule=sf.NoiseSchedule.linear())
engine.sample(2, steps=3)
print(*sorted({"torch", "triton", "diffusers", "onnx", "scipy", "tensorrt"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "\n"
