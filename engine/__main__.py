"""``python -m stepfuse``: the command line where its script is not on the path."""

from stepfuse.cli import app

if __name__ == "__main__":
    app()
