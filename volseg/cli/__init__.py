"""The command line: one module per group of verbs. Importing it registers all verbs, in the order of the help."""

from volseg.cli import predict, train, evaluate, audit, convert, models, node, machine  # noqa: F401, I001 - the order is that of the help
from volseg.cli.app import app, main

__all__ = ["app", "main"]
