"""stepfuse inside other libraries."""
