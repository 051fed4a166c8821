"""``python -m ramrs``: the command line."""

from ramrs.cli import main

main()
