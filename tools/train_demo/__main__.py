"""Run the training stages in order: ``python -m tools.train_demo [STAGE ...]``."""

import argparse
import logging
from pathlib import Path

import torch


def main() -> None:
    """Parse the stages and run them."""
    parser = argparse.ArgumentParser(prog="python -m tools.train_demo", description=__doc__)
    stages = ("download", "autoencoder", "refine", "denoiser", "focus", "adapters", "distill")
    named = ", ".join((*stages, "zoo"))
    parser.add_argument("stages", nargs="*", default=stages, metavar="STAGE", help=f"of {named}; all but the last")
    parser.add_argument("--pictures", type=Path, default=Path("build/pictures"), help="where the packages are kept")
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="where the pipeline is written")
    parser.add_argument("--zoo", type=Path, default=Path("zoo"), help="where the adapters of the zoo are written")
    parser.add_argument("--minutes", type=float, help="override the time that a stage may take")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for stage in arguments.stages:
        if stage == "download":
            from tools.train_demo.pictures import download

            download(arguments.pictures)
        elif stage == "autoencoder":
            from tools.train_demo import autoencoder

            autoencoder.train(arguments.pictures, arguments.out / "pipeline" / "vae", arguments.minutes or 20)
        elif stage == "refine":
            from tools.train_demo import autoencoder

            autoencoder.refine(arguments.pictures, arguments.out / "pipeline" / "vae", arguments.minutes or 12)
        elif stage == "denoiser":
            from tools.train_demo import denoiser

            denoiser.train(arguments.pictures, arguments.out / "pipeline", arguments.minutes or 43)
        elif stage == "focus":
            from tools.train_demo import denoiser

            denoiser.focus(arguments.pictures, arguments.out / "pipeline", arguments.minutes or 55)
        elif stage == "adapters":
            from tools.train_demo import adapter

            adapter.train_all(arguments.pictures, arguments.out)
        elif stage == "distill":
            from tools.train_demo import distill

            distill.train(arguments.out)
        elif stage == "zoo":
            from tools.train_demo import zoo

            zoo.train_all(arguments.pictures, arguments.zoo)
        else:
            parser.error(f"unknown stage {stage!r}: expected {named}")


if __name__ == "__main__":
    main()
