"""Fine-tune a pretrained flow: `accelerate launch scripts/finetune_gft.py --config configs/digits_gft.yaml --train.num_steps 200`."""

import sys

from hf_flowft.cli import main

if __name__ == "__main__":
    sys.exit(main(["finetune", "gft", *sys.argv[1:]]))
