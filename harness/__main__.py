"""`python -m harness` does what the command `harness` does."""

from harness.cli import main

main()
