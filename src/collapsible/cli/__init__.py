"""The command ``collapsible``: one file per command, heavy imports inside the commands."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line; exits with 0 done, 1 the work failed, 2 wrong use."""
    try:
        from collapsible.cli.app import app

        app()
    except KeyboardInterrupt:
        # While Python is still importing; the commands answer for themselves.
        print("collapsible: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


__all__ = ["main"]
