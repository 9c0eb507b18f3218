"""``python -m collapsible`` is the command ``collapsible``."""

from collapsible.cli import main

if __name__ == "__main__":
    main()
