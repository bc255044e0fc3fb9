"""What gathering ranges for every method costs: forwards with the observer beside plain ones, interleaved; and memory.

``python benchmarks/ranges.py`` uses the demo's denoiser at the batch of a check (8 probes, both branches).
"""

import argparse
import resource
import statistics
import time

import torch

from qcheck.calibration.histogram import Histogram
from qcheck.demo import library
from qcheck.model import load
from qcheck.model.inputs import observed
from qcheck.quantize import formats, plan
from qcheck.spec.recipe import METHODS


def _megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Interleave and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("threads", nargs="?", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    unet = load.load(str(library.PIPELINE)).denoiser
    draws = torch.Generator().manual_seed(3)
    x, hidden = torch.randn(16, 4, 16, 16, generator=draws), torch.randn(16, 16, 128, generator=draws)
    layers, seen = dict(plan.linear_layers(unet)), Histogram()

    @torch.no_grad()
    def forward(timestep: float) -> float:
        start = time.perf_counter()
        unet(x, torch.tensor([timestep]), hidden)
        return time.perf_counter() - start

    forward(0.0)
    plain, watched, before = [], [], 0.0
    for number in range(60):
        plain.append(forward(number * 16.0))
        with observed(unet, layers, seen):
            watched.append(forward(number * 16.0))
        if number == 9:
            before = _megabytes()
    ratio = statistics.median(watched) / statistics.median(plain)
    print(f"{ratio:.2f} forwards a sample for all of {', '.join(METHODS)}; {len(layers)} layers")
    print(f"peak memory from 10 to 60 batches: +{_megabytes() - before:.1f} MB")
    number_format = formats.find("int8")
    for method in METHODS:
        start = time.perf_counter()
        for inputs in seen.seen().values():
            inputs.clip(method, number_format, 99.99)
        spent = (time.perf_counter() - start) / statistics.median(plain)
        print(f"reading {method} for all layers afterwards: {spent:.2f} forwards")


if __name__ == "__main__":
    main()
