"""The command line, a module a command; ``app`` puts them together."""

from stepfuse.cli.app import app

__all__ = ["app"]
