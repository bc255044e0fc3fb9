"""Run the stages of one pipeline: ``python -m tools.train_zoo NAME [STAGE ...]``."""

import argparse
import logging
from pathlib import Path

import torch

from tools.train_zoo import adapters
from tools.train_zoo.base import BASES, train


def main() -> None:
    """Parse the stages and run them."""
    parser = argparse.ArgumentParser(prog="python -m tools.train_zoo", description=__doc__)
    parser.add_argument("name", choices=tuple(BASES))
    parser.add_argument("stages", nargs="*", default=("base", "adapters"), metavar="STAGE", help="of base, adapters")
    parser.add_argument("--pictures", type=Path, default=Path("build/pictures"), help="where the packages are kept")
    parser.add_argument("--out", type=Path, default=Path("zoo"), help="where the pipelines are written")
    parser.add_argument("--minutes", type=float, help="override the time that a stage may take")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16, help="pictures a step of the base")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--jobs", type=int, default=1, help="adapters trained at a time, each in a process")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    base = BASES[asked.name]
    for stage in asked.stages:
        out = asked.out / base.name / "pipeline"
        if stage == "base" and out.exists():
            logging.info("%s is kept; remove it to train it again", out)
        elif stage == "base":
            minutes = asked.minutes or base.minutes
            train(base, asked.pictures, out, minutes, asked.batch, asked.device)
        elif stage == "adapters":
            adapters.train_all(base, asked.pictures, asked.out / base.name, asked.device, asked.jobs)
        else:
            parser.error(f"unknown stage {stage!r}: expected base, adapters")


if __name__ == "__main__":
    main()
