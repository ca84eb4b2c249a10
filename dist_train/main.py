"""`accelerate launch dist_train/main.py [RECIPE] [--section.field value ...]`, or torchrun."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a file, Python looks for modules in this folder: look in the one above instead.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

    from dist_train.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
