"""TensorRT plans: what each depends on, where they are kept, and how one is loaded. Built by ``stepfuse.export``."""
