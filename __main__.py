"""`python -m bifrons`: the command line."""

from .apps.cli.main import run

run()
