"""Resident memory: flat over probes and steps, and small when an adapter is inspected on a large base.

``python -m benchmarks.memory traces`` traces all four arms of the demo for 8 and then 256 probes of 10 steps in one
process, and for 8 probes of 50 steps in another, and prints the peaks of the resident memory.
``python -m benchmarks.memory inspect`` writes a random 2.6 B-parameter UNet (SDXL's configuration, fp16, sharded; 5 GB
in a temporary folder) with a rank-64 adapter on its attention and prints the peak while it is inspected.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

_TRACES = [(10, 8, 256), (50, 8)]  # steps, then numbers of probes


def _resident() -> float:
    """Resident memory now, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def _high(process: int) -> float:
    """Highest resident memory of a process so far, MB; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM")), 0.0)


def trace_once(steps: int, *counts: int) -> None:
    """Trace f1, f0, q0 and q1 (int8 in ONNX Runtime) on more and more probes; print the peak of each number in MB."""
    import numpy as np

    from qcheck.api.request import check_spec
    from qcheck.core.cache import Cache
    from qcheck.core.progress import Silent
    from qcheck.quantize import artifact
    from qcheck.spec import limits
    from qcheck.tasks import check
    from qcheck.tasks import session as sessions
    from qcheck.tasks.check import QuantizedBase

    looks = limits.find("default").model_copy(update={"looks": counts})
    spec = check_spec("demo", "flat", scheme="int8", limits=looks, steps=steps, threads=1, build=False)
    with (
        tempfile.TemporaryDirectory() as name,
        sessions.opened(spec, Cache(Path(name) / "cache"), Silent()) as session,
    ):
        chosen, strata = spec.schemes[0], session.sampler.setup.strata
        sources = session.sources(chosen)
        q0 = session.quantized("q0", "base", artifact.write_base(sources), chosen)
        made = check.make(
            session, spec.orders[0], QuantizedBase(sources, q0, np.zeros(len(strata)), [], {}), Path(name)
        )
        for count in counts:
            peak, done = _resident(), threading.Event()

            def watch(done: threading.Event = done) -> None:
                nonlocal peak
                while not done.is_set():
                    peak = max(peak, _resident())
                    time.sleep(0.02)

            watcher = threading.Thread(target=watch)
            watcher.start()
            check.look(made, count)
            done.set()
            watcher.join()
            print(json.dumps({"probes": count, "steps": steps, "peak_mb": round(peak, 1)}))


def traces() -> None:
    """Run the three sizes and print the differences."""
    found: dict[tuple[int, int], float] = {}
    for numbers in _TRACES:
        command = [sys.executable, __file__, "once", *map(str, numbers)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        for line in done.stdout.splitlines():
            print(line, flush=True)
            seen = json.loads(line)
            found[seen["probes"], seen["steps"]] = seen["peak_mb"]
    print(f"8 -> 256 probes: {found[256, 10] - found[8, 10]:+.1f} MB")
    print(f"10 -> 50 steps:  {found[8, 50] - found[8, 10]:+.1f} MB")


def inspect_large() -> None:
    """Write the base and the adapter, and inspect them in a child process."""
    import torch
    from accelerate import init_empty_weights
    from safetensors.torch import save_file

    from benchmarks import shapes

    with init_empty_weights():
        unet = shapes.unet_xl()
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "unet").mkdir()
        (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
        shard: dict[str, torch.Tensor] = {}
        lora: dict[str, torch.Tensor] = {}
        total = number = 0
        for key, value in unet.state_dict().items():
            shard[key] = (torch.randn(value.shape, generator=generator) * 0.02).half()
            total += value.numel()
            layer = key.removesuffix(".weight")
            if "attn" in key and key.endswith("weight") and value.dim() == 2:
                lora[f"unet.{layer}.lora_A.weight"] = torch.randn(64, value.shape[1], generator=generator).half() * 0.02
                lora[f"unet.{layer}.lora_B.weight"] = torch.randn(value.shape[0], 64, generator=generator).half() * 0.02
            if sum(v.nbytes for v in shard.values()) > 1e9:
                save_file(shard, folder / "unet" / f"part-{number}.safetensors")
                shard, number = {}, number + 1
        save_file(shard, folder / "unet" / f"part-{number}.safetensors")
        save_file(lora, folder / "lora.safetensors")
        print(f"{total / 1e9:.2f} B parameters in {number + 1} shards, {len(lora) // 2} adapter layers", flush=True)
        command = [sys.executable, "-m", "qcheck", "inspect", str(folder / "lora.safetensors"), "--base", str(folder)]
        start = time.monotonic()
        child = subprocess.Popen([*command, "--json"], stdout=subprocess.DEVNULL)
        peak = 0.0
        while child.poll() is None:  # ru_maxrss of a child would count what this process held when it forked
            peak = max(peak, _high(child.pid))
            time.sleep(0.2)
        print(f"exit {child.returncode}, peak resident memory {peak:.0f} MB, {time.monotonic() - start:.0f} s")


def main() -> None:
    """Choose one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["traces", "inspect", "once"])
    parser.add_argument("numbers", nargs="*", type=int)
    asked = parser.parse_args()
    if asked.what == "once":
        trace_once(*asked.numbers)
    elif asked.what == "traces":
        traces()
    else:
        inspect_large()


if __name__ == "__main__":
    main()
