"""Inputs from anybody, thrown at everything that reads them: `python -m tests.fuzz --inputs 20000 --seed 0`."""
