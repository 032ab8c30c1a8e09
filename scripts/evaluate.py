"""Measure a pipeline: `python scripts/evaluate.py runs/digits_base/pipeline --config configs/digits_gft.yaml`."""

import sys

from hf_flowft.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
