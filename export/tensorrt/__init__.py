"""TensorRT plans of a bundle's networks: built, cached by all that they depend on, refitted with other weights."""

from stepfuse.export.tensorrt.build import build_plan
from stepfuse.export.tensorrt.cache import load_plan, plan_for, remove_plans
from stepfuse.export.tensorrt.refit import refit_engine
from stepfuse.tensorrt.library import Library, find_library
from stepfuse.tensorrt.options import Options
from stepfuse.tensorrt.plan import Plan, PlanKey
from stepfuse.tensorrt.profile import Profile
from stepfuse.tensorrt.runtime import deserialise
from stepfuse.tensorrt.target import Target, this_gpu

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
