"""Train a flow from scratch: `accelerate launch scripts/pretrain.py --config configs/digits_base.yaml`."""

import sys

from hf_flowft.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
