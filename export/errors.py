"""What can go wrong when a model is exported."""


class ExportError(ValueError):
    """A model cannot be exported; the message names the part, the rule and the value, and what to do."""
