"""What the screen of `qcheck calibrate --pictures` reads on clean drawings and under white noise.

``python -m benchmarks.grain --pictures DIR`` takes 200 drawings of each of the demo's styles.
"""

import argparse
from pathlib import Path

import numpy as np

from qcheck.calibration.screen import GRAIN
from qcheck.measure import spectrum
from tools.train_demo.pictures import PACKAGES, load

DRAWN, NOISES = 200, (0.0, 0.025, 0.05, 0.1, 0.15)


def main() -> None:
    """Print quantiles of the grain, in parts of the range of values, and what is left out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pictures", type=Path, default=Path("build/pictures"))
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    print("| style | noise | 1 % | median | 99 % | left out |\n|---|---|---|---|---|---|")
    for style in PACKAGES:
        images = load(asked.pictures, style).images.numpy() / 2 + 0.5
        chosen = images[rng.permutation(len(images))[:DRAWN]]
        for noise in NOISES:
            found = [spectrum.grain(np.clip(x + noise * rng.standard_normal(x.shape), 0, 1)) for x in chosen]
            low, middle, high = np.quantile(found, (0.01, 0.5, 0.99))
            left = np.mean(np.array(found) > GRAIN)
            print(f"| {style} | {noise:g} | {low:.3f} | {middle:.3f} | {high:.3f} | {left:.0%} |")


if __name__ == "__main__":
    main()
