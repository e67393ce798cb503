"""Profiles of the fuzzers: the default one is small and always draws the same; ``fuzz`` is what ``make fuzz`` runs."""

import importlib.util
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

settings.register_profile("fuzz", max_examples=2_000, suppress_health_check=list(HealthCheck), print_blob=True)


def _load(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


_load("mutations")
_load("targets")
