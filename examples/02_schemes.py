"""Several schemes and orders in one check: the full-precision reference is run once for all of them."""

import tempfile
from pathlib import Path

import qcheck

with tempfile.TemporaryDirectory() as folder:
    out = Path(folder) / "flat"
    report = qcheck.check(
        "demo",
        lora="flat",
        scheme=["int8", "int4-g64"],
        order=["merge-quantize", "unmerged"],
        steps=6,
        max_probes=4,
        build=False,
        out=out,
    )
    for case in report.cases:
        size = case.artifact[0].bytes / 1e6
        print(f"{case.scheme:10} {case.order:15} {case.verdict:13} {size:.1f} MB")
    print(f"{len(list(out.rglob('*.onnx')))} ONNX files, and the page {out.name}/report.html")
    assert qcheck.load_report(out)["int8", "unmerged"].verdict == report["int8", "unmerged"].verdict
