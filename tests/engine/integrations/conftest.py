"""Families of tiny pipelines, by module name, where diffusers is there."""

import importlib.util
import sys
from pathlib import Path

FAMILIES = ("stable_pipelines", "stable_3_pipelines", "flux_pipelines", "text_pipelines", "video_pipelines")

if importlib.util.find_spec("diffusers") is not None:
    for name in ("shown", *FAMILIES):
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / "pipelines" / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
