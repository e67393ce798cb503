"""Models on disk: checked folders, and what a bundle says of its network."""

from stepfuse.bundle.bundle import Bundle, embedded_models, write_bundle
from stepfuse.bundle.cond_input import CondInput
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.bundle.pipeline_info import PipelineInfo, PromptInput

__all__ = ["Bundle", "CondInput", "ModelInfo", "PipelineInfo", "PromptInput", "embedded_models", "write_bundle"]
