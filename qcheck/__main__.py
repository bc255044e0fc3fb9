"""``python -m qcheck``."""

from qcheck.cli.app import main

main()
