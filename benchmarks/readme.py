"""Write what README.md and docs/ show of the code: tables from the data files, and captures of real runs.

``python -m benchmarks.readme`` writes the tables. ``python -m benchmarks.readme --capture`` also runs the tutorial's
commands, one after the other in a folder of their own, and puts what they printed into the tutorial and README.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import settings
from benchmarks.peers import tables as peers
from qcheck.demo import library
from qcheck.spec import scheme, target

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def schemes_and_targets() -> str:
    """The scheme x target table; devices that run the same schemes share a column."""
    columns: dict[tuple[str, ...], list[target.Target]] = {}
    for device in target.every_target():
        columns.setdefault(tuple(_runs(device, one) for one in scheme.every()), []).append(device)
    rows = [
        [f"`{one.name}`", f"{one.title}; {one.compute}", *(answers[index] for answers in columns)]
        for index, one in enumerate(scheme.every())
    ]
    return table(["scheme", "what it is; the rest is in", *map(_titles, columns.values())], rows)


def _titles(devices: Sequence[target.Target]) -> str:
    built = " and ".join(dict.fromkeys(f"SM {d.proxy.value}" for d in devices if d.proxy))
    names = ", ".join(device.name for device in devices)
    return f"{names}{f' (built for {built})' if built else ''}"


def _runs(device: target.Target, one: scheme.Scheme) -> str:
    if device.refuses(one):
        return "no"
    if "tensorrt" not in one.runs:
        return {"onnxruntime": "by ONNX Runtime", "bitsandbytes": "by PyTorch"}[one.runs[0]]
    late = [release.tensorrt for release in device.releases if release.opset < one.opset]
    known = dict.fromkeys(".".join(version.split(".")[:2]) for version in late)
    return f"yes; not verified on TensorRT {' and '.join(known)}" if late else "yes"


def training() -> str:
    """What the shipped adapters are and do, from the record that training left beside them."""
    records = json.loads((library.ADAPTERS / "training.json").read_text())
    distilled = (_distilled(one) for one in records if "updates" in one)
    return "\n\n".join((_styles([one for one in records if "style" in one]), *distilled))


def _styles(records: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"`{one['name']}`",
            one["style"],
            f"{one['rank']}, {one['alpha']:g}",
            f"{one['steps']}",
            f"{one['loss_base']:.4f} -> {one['loss_adapted']:.4f} ({one['held_out_pictures']} pictures)",
        ]
        for one in records
    ]
    loss = "denoising loss on unseen pictures of the style: base -> adapted"
    return table(["adapter", "style", "rank, alpha", "steps", loss], rows)


def _distilled(record: Mapping[str, Any]) -> str:
    return (
        f"`{record['name']}` (rank {record['rank']}, alpha {record['alpha']:g}, {record['updates']} updates) distils "
        f"steps: {record['steps']} at guidance {record['guidance']:g} end {record['distance_adapted']:.3f} from where "
        f"the base is\nafter {record['teacher_steps']} at guidance {record['teacher_guidance']:g} (relative distance "
        f"of final latents, {record['held_out_runs']} unseen runs); without it {record['distance_base']:.3f}, or\n"
        f"{record['distance_base_guided']:.3f} with that guidance."
    )


def quantizers() -> str:
    """Signal to noise of qcheck's ranges beside other quantizers', as ``python -m benchmarks.quantizers`` kept it."""
    measured = json.loads((ROOT / "benchmarks" / "quantizers.json").read_text("utf-8"))
    return table(["quantizer", "signal to noise, dB"], [[name, f"{value:.1f}"] for name, value in measured.items()])


def block(name: str, content: str, text: str) -> str:
    """``text`` with the part between the markers of ``name`` replaced."""
    pattern = rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)"
    return re.sub(pattern, lambda match: f"{match[1]}{content}\n{match[2]}", text, flags=re.DOTALL)


def read(page: Path, name: str) -> str:
    """What stands between the markers of ``name`` on a page now."""
    match = re.search(rf"<!-- {name}:begin -->\n(.*?)\n?<!-- {name}:end -->", page.read_text("utf-8"), re.DOTALL)
    return match[1] if match else ""


def tables() -> Iterator[tuple[Path, str, str]]:
    """Page, name and content of everything that comes from data files."""
    yield DOCS / "schemes.md", "table", schemes_and_targets()
    yield DOCS / "schemes.md", "quantizers", quantizers()
    yield DOCS / "peers.md", "setting", peers.setting(peers.record())
    yield DOCS / "peers.md", "quantizers", peers.quantizers(peers.record())
    yield DOCS / "peers.md", "rankings", peers.rankings(peers.record())
    yield README, "peers", peers.ratios(peers.record())
    yield DOCS / "demo.md", "training", training()
    yield DOCS / "config.md", "settings", settings.sample(DOCS / "config.md")


TUTORIAL = {  # name of the capture, command, what stands before the part that is shown
    "inspect": ("inspect faint --base demo --scheme int4-g128", "\nwhat arrives, forecast"),
    "kept": ("demo --out kept", "\nflat.safetensors at weight"),
    "lost": ("demo faint --scheme int4-g128 --order quantize-merge --out lost", "\nfaint.safetensors at weight"),
    "advise": ("advise lost --out cures", ""),
    "export": ("export demo --lora faint --scheme int4-g128 --out board", ""),
}


def captures() -> Iterator[tuple[Path, str, str]]:
    """Run the tutorial in a folder of its own; page, name and content of what its commands printed."""
    tutorial = DOCS / "tutorial.md"
    with tempfile.TemporaryDirectory() as folder:
        for name, (command, start) in TUTORIAL.items():
            printed = _run(Path(folder), command)
            cut = printed.index(start)
            left_out = "[...]\n" if cut else ""
            shown = f"```console\n$ qcheck {command}\n{left_out}{printed[cut:].lstrip()}\n```"
            yield tutorial, name, shown
            if name == "kept":
                yield tutorial, "measurements", f"```text\n{printed[:cut].strip()}\n```"
            if name == "lost":
                yield README, name, shown


def _run(folder: Path, command: str) -> str:
    """What qcheck prints in ``folder``, without blanks at the ends of lines."""
    program = str(Path(sys.executable).parent / "qcheck")
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(
        [program, *command.split()], cwd=folder, capture_output=True, text=True, env=environment, check=False
    )
    return "\n".join(line.rstrip() for line in done.stdout.replace(f"{ROOT}/", "").strip().splitlines())


def main() -> None:
    """Rewrite the marked parts of README.md and docs/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capture", action="store_true")
    wanted = [*tables(), *(captures() if parser.parse_args().capture else ())]
    for page, name, content in wanted:
        page.write_text(block(name, content, page.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
