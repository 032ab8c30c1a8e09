"""Time and memory as ratios against bare loops and peers, in one run: `python scripts/benchmark.py`."""

import sys

from hf_flowft.cli import main

if __name__ == "__main__":
    sys.exit(main(["study", "benchmark", *sys.argv[1:]]))
