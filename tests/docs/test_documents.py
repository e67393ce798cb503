"""Every block of code and every command of README.md and docs runs as it stands there.

The embedded model is stood in for by a network of one product, and the pipeline folder by a tiny one: what is shown is
that the text is right, not how fast it is.
"""

import ast
import functools
import inspect
import re
import shlex
import shutil
from importlib import metadata
from pathlib import Path

import lora_files
import numpy as np
import onnx
import pytest
import tiny_pipelines
import typer.main
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from typer.testing import CliRunner

import stepfuse as sf
from stepfuse.cli import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FASHION = sf.Bundle.load("fashion", verify=False)


def blocks(document, language="python"):
    """The code of a document: (line, text)."""
    text = document.read_text(encoding="utf-8")
    for found in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield text[: found.start()].count("\n") + 2, found[1]


def commands(document):
    """The lines of a document that are typed into a shell and start ``stepfuse``: (line, arguments)."""
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("    stepfuse "):
            yield number, shlex.split(line, comments=True)[1:]


#: Pages that install stepfuse itself, from a clone; on the others it is there, from a wheel perhaps.
INSTALLING = ("README.md", "tutorial.md")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_an_extra_is_added_to_what_is_installed(document):
    for named, extra in re.findall(r"pip install '([^'\[]*)\[([a-z,]+)\]'", document.read_text(encoding="utf-8")):
        assert extra in metadata.metadata("stepfuse").get_all("Provides-Extra")
        assert named == "stepfuse" or document.name in INSTALLING or "..." in named, f"{named}[{extra}]"


def write_network(path, info):
    """The exact network of data that is zero everywhere: what a sample holds is noise, of the timestep's level."""
    one_over_sigma = (1 / np.sqrt(1 - info.schedule.alphas_cumprod)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["timestep"], ["index"], to=TensorProto.INT64),
            helper.make_node("Gather", ["one_over_sigma", "index"], ["factor"]),
            helper.make_node("Reshape", ["factor", "column"], ["factors"]),
            helper.make_node("Mul", ["sample", "factors"], ["prediction"]),
        ],
        "zero",
        [
            helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["R", *info.shape]),
            helper.make_tensor_value_info("timestep", TensorProto.FLOAT, ["R"]),
            helper.make_tensor_value_info("class_labels", TensorProto.INT64, ["R"]),
        ],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["R", *info.shape])],
        [
            numpy_helper.from_array(one_over_sigma, "one_over_sigma"),
            numpy_helper.from_array(np.int64([-1, 1, 1, 1]), "column"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Embedded models of the right names, shapes and classes."""
    folder = tmp_path_factory.mktemp("models")
    write_network(folder / "network.onnx", FASHION.info)
    for name in ("fashion", "fashion-8step"):
        sf.write_bundle(
            folder / name,
            name=name,
            info=FASHION.info,
            files={"denoiser.onnx": folder / "network.onnx"},
            provenance="made by a test",
            licence="Apache-2.0",
        )
    return folder


@pytest.fixture
def here(models, exported, controlled, pipeline_folder, tmp_path, monkeypatch):
    """A reader's folder: with a pipeline, a LoRA and pictures of the names that the documents use."""

    bundle = exported("StableDiffusionPipeline").path

    def from_diffusers(source, out, **options):
        """The export of that pipeline, which takes a while, is done once for all tests."""
        assert Path(source).resolve() == pipeline_folder
        made = controlled() if options.get("controlnets") else bundle
        shutil.copytree(made, out, dirs_exist_ok=bool(options.get("overwrite")))
        return sf.Bundle.load(out)

    monkeypatch.setattr("stepfuse.bundle.bundle._MODELS", models)
    monkeypatch.setattr("stepfuse.export.from_diffusers", from_diffusers, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # where networks are kept that OpenVINO has compiled
    (tmp_path / "stable-diffusion-folder").symlink_to(pipeline_folder)
    Image.fromarray(np.full((28, 28), 128, np.uint8)).save(tmp_path / "half.png")
    Image.fromarray(np.full((16, 16, 3), 128, np.uint8)).save(tmp_path / "edges.png")
    (tmp_path / "prompts.txt").write_text("a red cat\na dog in the rain\n", encoding="utf-8")
    (tmp_path / "prompts.csv").write_text("id,prompt,steps\na,a red cat,2\nb,a dog in the rain,\n", encoding="utf-8")
    (tmp_path / "requests.jsonl").write_text(
        '{"id": "a", "prompt": "bag", "steps": 4, "seed": 7}\n{}\n', encoding="utf-8"
    )
    lora_files.write_lora(tmp_path / "style.safetensors")
    return tmp_path


@pytest.fixture(scope="module")
def controlled(pipeline_folder, tmp_path_factory):
    """Exports that pipeline with a ControlNet, once."""

    @functools.cache
    def export():
        from stepfuse.export.pipelines.export_folder import from_diffusers

        folder = tmp_path_factory.mktemp("controlled")
        tiny_pipelines.controlnet(16).save_pretrained(folder / "canny")
        nets = {"canny": folder / "canny"}
        return from_diffusers(pipeline_folder, folder / "bundle", controlnets=nets).path

    return export


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory):
    pytest.importorskip("diffusers")
    return tiny_pipelines.save_tiny("StableDiffusionPipeline", tmp_path_factory.mktemp("pipelines") / "folder")


def module():
    import torch

    class Tenth(torch.nn.Module):
        def forward(self, x, t):
            return 0.1 * x + 0 * t[:, None, None, None]

    return Tenth().eval()


#: What needs a GPU, by what the block begins with: its names are checked, its calls are not made.
ON_A_GPU = (
    'engine = sf.Engine.load("my-bundle", device',
    'with sf.TextToImage.load("my-pipeline", device',
    "from stepfuse.backends.cuda",
    "from stepfuse.export import lora_weights",
    "import diffusers, torch\n",
)


#: What needs a cluster, likewise; tests/engine/integrations/ray runs it on one.
ON_A_CLUSTER = ("import ray\n",)


#: Bundles of Stable Diffusion XL, which few documents have.
XL = {"my-base": "StableDiffusionXLPipeline", "my-refiner": "StableDiffusionXLImg2ImgPipeline"}


@pytest.fixture
def of_xl(document, exported, tmp_path):
    """Those of them that a document names, exported before ``here`` has its own export."""
    for name, pipeline in XL.items():
        if name in document.read_text(encoding="utf-8"):
            (tmp_path / name).symlink_to(exported(pipeline).path)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_the_code_runs(document, of_xl, here):
    names = {"unet": module()}  # the one thing that a reader brings: a network of their own
    for line, text in blocks(document):
        if text.startswith((*ON_A_GPU, *ON_A_CLUSTER)):
            check_names(text)
            continue
        text = text.replace("9400", "0")  # any port that is free
        code = compile("\n" * (line - 1) + text, document, "exec")  # a traceback shows the document's own line
        exec(code, names)
    for value in names.values():
        if isinstance(value, sf.Engine | sf.TextToImage):
            value.close()
    if "server" in names:
        names["server"].shutdown()
        names["prometheus_client"].REGISTRY.unregister(names["collector"])


def check_names(text):
    """Imports and attributes of ``sf`` exist, and so do the keywords of calls of what they name."""
    names = {"sf": sf}
    tree = ast.parse(text)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            exec(compile(ast.Module([node], []), "imports", "exec"), names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = ast.unparse(node.func)
            if function.split(".")[0] in names:
                taken = inspect.signature(eval(function, names)).parameters
                given = {keyword.arg for keyword in node.keywords}
                has_options = any(one.kind is one.VAR_KEYWORD for one in taken.values())
                assert has_options or given <= taken.keys(), f"{function} takes {', '.join(taken)}, got {given}"


#: Options with which a command takes seconds where a reader's takes minutes.
FEW = {
    "fit": {"--steps": "3", "--samples": "24", "--held-out": "4", "--rounds": "1"},
    "bench": {"--rows": "1,2", "--steps": "1", "--seconds": "0.01"},
}

#: Commands that are only parsed: what they do takes minutes, or a GPU or a cluster, or this machine to be fast at int8.
PARSED_ALONE = ("analyze", "plan", "quantize", "serve")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_the_commands_run(document, here, models):
    for name in ("my-model", "my-model-int8"):  # what a page's code, or a command that is only parsed, would have made
        (here / name).symlink_to(models / "fashion")
    for line, arguments in commands(document):
        elsewhere = {"--ray", "--compare", "--device"} & {*arguments}  # a cluster, another's figures, a GPU
        if arguments[0] in PARSED_ALONE or elsewhere:
            command = typer.main.get_command(app).commands[arguments[0]]
            command.make_context(arguments[0], arguments[1:])
            continue
        for option, value in FEW.get(arguments[0], {}).items():
            if option in arguments:
                arguments[arguments.index(option) + 1] = value
            else:
                arguments += [option, value]
        arguments += {"fit": ["--no-compare"], "bench": ["--no-cold-start"]}.get(arguments[0], [])
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{document.name}:{line}: {' '.join(arguments)}\n{result.output}"


def test_the_commands_of_the_makefile_work_twice():
    lines = re.findall(r"bin/stepfuse (.*)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert lines
    for line in lines:
        name, *arguments = shlex.split(line)
        context = typer.main.get_command(app).commands[name].make_context(name, arguments)
        assert context.params["force"] or context.params.get("redraw"), line
