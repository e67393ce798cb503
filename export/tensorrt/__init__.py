"""TensorRT plans of a bundle's networks: built, cached by what they depend on, refitted."""

from stepfuse.export.tensorrt.build import build_plan
from stepfuse.export.tensorrt.cache import load_plan, plan_for, remove_plans
from stepfuse.export.tensorrt.library import Library, find_library
from stepfuse.export.tensorrt.options import Options
from stepfuse.export.tensorrt.plan import Plan, PlanKey
from stepfuse.export.tensorrt.profile import Profile
from stepfuse.export.tensorrt.refit import deserialise, refit_engine
from stepfuse.export.tensorrt.target import Target, this_gpu

__all__ = [
    "Library",
    "Options",
    "Plan",
    "PlanKey",
    "Profile",
    "Target",
    "build_plan",
    "deserialise",
    "find_library",
    "load_plan",
    "plan_for",
    "refit_engine",
    "remove_plans",
    "this_gpu",
]
