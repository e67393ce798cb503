"""``serve run app:app`` here, or ``serve run config.yaml``."""

from stepfuse.integrations.ray import deployment

app = deployment(["fashion", "fashion-8step"])
