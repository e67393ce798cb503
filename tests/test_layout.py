"""Which way imports run: includes of the core, floors of the rooms, and what sampling leaves alone."""

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
    "torch_capture.py": {"torch"},
    "openvino": {"openvino"},
    "ray": {"fastapi", "pyarrow", "ray", "starlette"},
    "server": {"anyio", "fastapi", "prometheus_client", "pydantic", "starlette", "uvicorn"},
}


def modules(*folders):
    return [
        pytest.param(path, id=str(path.relative_to(ROOT))) for f in folders for path in sorted((ROOT / f).rglob("*.py"))
    ]


def imported(path, *, lazily):
    """Names of the modules that a file imports, at its top level or anywhere."""
    tree = ast.parse(path.read_text())
    for node in statements(tree, lazily=lazily):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def statements(tree, *, lazily):
    """All but what only type checkers read; those that run on import, or also the bodies of functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        if lazily or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from statements(node, lazily=lazily)


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


SOURCES = {
    ".".join((package, *path.relative_to(ROOT / folder).with_suffix("").parts)).removesuffix(".__init__"): path
    for folder, package in {"engine": "stepfuse", "kernels": "stepfuse.kernels", "export": "stepfuse.export"}.items()
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def room_of(module):
    """The folder that a module is in; back ends of the host and the GPU, and Ray, which runs what is above the other
    integrations, are rooms of their own, and so is a module of ``engine/``."""
    parts = module.split(".")
    if module.startswith(("stepfuse.backends.host", "stepfuse.backends.cuda", "stepfuse.integrations.ray")):
        return ".".join(parts[:3])
    if module.startswith("stepfuse.backends."):
        return module
    return ".".join(parts[:2])


def sources_imported(module):
    """Our modules that one imports, on its top level or when they are used."""
    for name in imported(SOURCES[module], lazily=True):
        if name.startswith("stepfuse._core") or not within(name, "stepfuse"):
            continue
        found = name if name in SOURCES else name.rpartition(".")[0]
        if found in SOURCES and found != module:
            yield found


def floors(graph):
    """Each node's floor: one above the highest that it imports. Fails on a cycle, which is an import that runs up."""
    found = {}

    def floor(node, above=()):
        assert node not in above, "imports run in a circle: " + " -> ".join([*above[above.index(node) :], node])
        if node not in found:
            found[node] = max((floor(below, (*above, node)) + 1 for below in sorted(graph[node])), default=0)
        return found[node]

    for node in sorted(graph):
        floor(node)
    return found


def test_no_module_imports_upwards():
    floors({module: set(sources_imported(module)) for module in SOURCES})


def test_no_room_imports_upwards_and_the_floors_are_those_of_the_architecture_page():
    graph = {room_of(module): set() for module in SOURCES}
    for module in SOURCES:
        graph[room_of(module)] |= {room_of(found) for found in sources_imported(module)} - {room_of(module)}
    derived = floors(graph)
    page = (ROOT / "docs" / "architecture.md").read_text()
    documented = {
        room: int(floor)
        for floor, rooms in re.findall(r"^\| (\d+) \| (.*) \|$", page, re.MULTILINE)
        for room in re.findall(r"`([^`]+)`", rooms)
    }
    assert documented == {room.removeprefix("stepfuse."): floor for room, floor in derived.items()}


def test_only_the_command_line_imports_export_and_kernels_import_nothing_of_ours():
    for module in SOURCES:
        rooms = {room_of(found) for found in sources_imported(module)} - {room_of(module)}
        assert "stepfuse.export" not in rooms or room_of(module) == "stepfuse.cli", module
        assert not rooms or room_of(module) != "stepfuse.kernels", module


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
