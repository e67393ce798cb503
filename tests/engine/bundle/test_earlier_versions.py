"""What stepfuse 0.1 wrote is read: a bundle, a table and a picture, committed as they were and never written anew."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import stepfuse as sf
from stepfuse.cli import app

WRITTEN = Path(__file__).parent / "written_by_0_1"
BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2  # of Stable Diffusion: Rombach et al. (2022)
ALPHAS_CUMPROD = np.cumprod(1 - BETAS)


def test_a_bundle_of_0_1_loads_and_samples():
    bundle = sf.Bundle.load(WRITTEN / "zero")
    assert bundle.info.shape == (1, 4, 5)
    assert bundle.info.prediction_type == "epsilon"
    assert bundle.info.cond["class_labels"].names == ("boot", "bag")
    np.testing.assert_allclose(bundle.info.schedule.alphas_cumprod, ALPHAS_CUMPROD, rtol=1e-12)
    noise = sf.normal(3, (2, 1, 4, 5))
    with sf.Engine.load(WRITTEN / "zero") as engine:
        found = engine.sample(2, cond=["boot", None], table=sf.samplers.ddim(bundle.info.schedule, 4), noise=noise)
    # The network predicts no noise at all: DDIM's Eq. 12 multiplies the state up to the last level, 1.
    np.testing.assert_allclose(found, noise / np.sqrt(ALPHAS_CUMPROD[750]), rtol=1e-5)


def test_a_table_of_0_1_loads():
    table = sf.StepTable.load(WRITTEN / "ddim.npz")
    np.testing.assert_array_equal(table["t"], [800, 600, 400, 200, 0])
    np.testing.assert_array_equal(table["g"], np.float32(3))
    np.testing.assert_allclose(table["p_x"], ALPHAS_CUMPROD[[800, 600, 400, 200, 0]] ** -0.5, rtol=1e-6)


def test_a_picture_of_0_1_is_drawn_again(tmp_path):
    again = tmp_path / "again.png"
    drawn = ["sample", str(WRITTEN / "zero"), "--like", str(WRITTEN / "boots.png"), "-o", str(again)]
    result = CliRunner().invoke(app, drawn)
    assert result.exit_code == 0, result.output
    with Image.open(WRITTEN / "boots.png") as before, Image.open(again) as after:
        np.testing.assert_array_equal(np.asarray(after), np.asarray(before))


def test_a_bundle_of_a_later_format_is_refused_by_its_number(tmp_path):
    for file in (WRITTEN / "zero").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "format_version": 2}))
    with pytest.raises(sf.BundleError, match=r"format_version.*2"):
        sf.Bundle.load(tmp_path)
