"""Write the generated parts of README.md: tables from the data files, and a terminal capture of a real run.

``python benchmarks/readme.py`` writes the tables. ``python benchmarks/readme.py --capture`` also runs ``qcheck demo``
and an adapter that is lost, and puts what they printed into README.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qcheck.demo import library
from qcheck.spec import scheme, target

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def schemes_and_targets() -> str:
    """The scheme x target table; devices that run the same schemes share a column."""
    columns: dict[tuple[str, ...], list[target.Target]] = {}
    for device in target.every_target():
        columns.setdefault(tuple(_runs(device, found) for found in scheme.every()), []).append(device)
    rows = [["scheme", "what it is; the rest is in", *map(_titles, columns.values())], ["---"] * (2 + len(columns))]
    for index, found in enumerate(scheme.every()):
        about = f"{found.title}; {found.compute}"
        rows.append([f"`{found.name}`", about, *(answers[index] for answers in columns)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _titles(devices: Sequence[target.Target]) -> str:
    built = " and ".join(dict.fromkeys(f"SM {d.proxy.value}" for d in devices if d.proxy))
    names = ", ".join(device.name for device in devices)
    return f"{names}{f' (built for {built})' if built else ''}"


def _runs(device: target.Target, found: scheme.Scheme) -> str:
    if device.refuses(found):
        return "no"
    if "tensorrt" not in found.runs:
        return {"onnxruntime": "by ONNX Runtime", "bitsandbytes": "by PyTorch"}[found.runs[0]]
    late = [release.tensorrt for release in device.releases if release.opset < found.opset]
    known = dict.fromkeys(".".join(version.split(".")[:2]) for version in late)
    return f"yes; not verified on TensorRT {' and '.join(known)}" if late else "yes"


def training() -> str:
    """What the shipped adapters are and do, from the record that training left beside them."""
    made = json.loads((library.ADAPTERS / "training.json").read_text())
    return "\n\n".join(
        (_styles([one for one in made if "style" in one]), *(_distilled(one) for one in made if "updates" in one))
    )


def _styles(made: Sequence[dict[str, Any]]) -> str:
    rows = [
        "| adapter | style | rank, alpha | steps | denoising loss on unseen pictures of the style: base -> adapted |"
    ]
    rows.append("|---|---|---|---|---|")
    for one in made:
        loss = f"{one['loss_base']:.4f} -> {one['loss_adapted']:.4f} ({one['held_out_pictures']} pictures)"
        rows.append(f"| `{one['name']}` | {one['style']} | {one['rank']}, {one['alpha']:g} | {one['steps']} | {loss} |")
    return "\n".join(rows)


def _distilled(made: dict[str, Any]) -> str:
    return (
        f"`{made['name']}` (rank {made['rank']}, alpha {made['alpha']:g}, {made['updates']} updates) distils steps: "
        f"{made['steps']} at guidance {made['guidance']:g} end {made['distance_adapted']:.3f} from where the base is "
        f"after {made['teacher_steps']} at guidance {made['teacher_guidance']:g} (relative distance of final latents, "
        f"{made['held_out_runs']} unseen runs);\nwithout it {made['distance_base']:.3f}, or "
        f"{made['distance_base_guided']:.3f} with that guidance."
    )


def block(name: str, content: str, text: str) -> str:
    """``text`` with the part between the markers of ``name`` replaced."""
    pattern = rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)"
    return re.sub(pattern, lambda found: f"{found[1]}{content}\n{found[2]}", text, flags=re.DOTALL)


def read(name: str) -> str:
    """What stands between the markers of ``name`` in README now."""
    found = re.search(rf"<!-- {name}:begin -->\n(.*?)\n?<!-- {name}:end -->", README.read_text("utf-8"), re.DOTALL)
    return found[1] if found else ""


LOST = ("faint", "--scheme", "int4-g128", "--order", "quantize-merge")


def captures() -> dict[str, str]:
    """Run the demo and an adapter that is lost, and return what they printed: verdicts, and the first one's table."""
    with tempfile.TemporaryDirectory() as folder:
        kept, lost = Path(folder) / "kept", Path(folder) / "lost"
        printed = _run("demo", "--out", str(kept)).replace(str(kept), "qcheck-out/flat-20261124-080000")
        gone = re.search(
            r"^NEEDS-QAT.*?(?=\n  estimate)", _run("demo", *LOST, "--out", str(lost)), re.DOTALL | re.MULTILINE
        )
    table, verdict = printed.split("\n\nflat.safetensors at weight", 1)
    return {
        "capture": f"```console\n$ qcheck demo\n[measurements]\n\nflat.safetensors at weight{verdict}\n```",
        "measurements": f"```\n{table}\n```",
        "lost": f"```console\n$ qcheck demo {' '.join(LOST)}\n[...]\n{gone[0] if gone else ''}\n```",
    }


def _run(*arguments: str) -> str:
    """What qcheck prints, without blanks at the ends of lines."""
    command = [str(Path(sys.executable).parent / "qcheck"), *arguments]
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def main() -> None:
    """Rewrite README.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capture", action="store_true")
    text = README.read_text("utf-8")
    if parser.parse_args().capture:
        for name, content in captures().items():
            text = block(name, content, text)
    text = block("table", schemes_and_targets(), text)
    text = block("training", training(), text)
    README.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
