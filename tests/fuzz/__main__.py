"""`python -m tests.fuzz --inputs 20000 --seed 0`: figures per target, and every input that broke something."""

from __future__ import annotations

import argparse
import faulthandler
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' shared modules


def main() -> int:
    """Run the fuzzer; 1 if anything broke."""
    from .run import run_target, shares
    from .targets import targets

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="TARGET[:INDEX]", help="one target, or one input of it")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    faulthandler.enable()
    name, _, index = (options.only or "").partition(":")
    num_broken, total = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        found = [target for target in targets(Path(folder)) if name in ("", target.name)]
        for target, count in shares(found, options.inputs):
            indices = [int(index)] if index else range(count)
            figures = run_target(target, indices, options.seed, Path(folder))
            num_broken, total = num_broken + len(figures.broken), total + len(indices)
            print(
                f"{target.name}: {len(indices):,} inputs, {figures.accepted:,} accepted, {figures.refused:,} refused "
                f"with a message, {len(figures.broken)} broken, slowest {figures.slowest_s:.2f} s",
                flush=True,
            )
            print(*figures.broken[:20], sep="\n", end="\n" if figures.broken else "")
    print(f"{total:,} inputs, {num_broken} broken")
    return 1 if num_broken else 0


if __name__ == "__main__":
    sys.exit(main())
