"""The command ``collapsible``: one file per command, heavy imports inside the commands."""


def main() -> None:
    """Run the command line; exits with 0 done, 1 the work failed, 2 wrong use."""
    from collapsible.cli.app import app

    app()


__all__ = ["main"]
