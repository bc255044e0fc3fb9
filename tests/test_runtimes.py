"""The table of docs/schemes.md is what these runs give; ``QCHECK_WRITE_DOCS=1`` writes it."""

import os
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from qcheck.model.arms import Arms
from qcheck.quantize import bnb, contents, fake
from qcheck.quantize.contents import QuantizedWeights
from qcheck.runtime.ort_runner import OnnxRunner
from qcheck.spec import recipe, scheme
from qcheck.spec.scheme import Scheme
from tests import builder, stored
from tests.conftest import Prepared

PAGE = Path(__file__).parent.parent / "docs" / "schemes.md"
MARKED = re.compile(r"(<!-- runtimes:begin -->\n)(.*?)(\n<!-- runtimes:end -->)", re.DOTALL)
CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
TITLES = ["scheme", "simulation = artifact", "ONNX Runtime", *(f"SM {c}" for c in CAPABILITIES), "bitsandbytes"]


def rows_of(text: str) -> list[list[str]]:
    found = MARKED.search(text)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in found[2].splitlines()] if found else []


def test_the_page_has_a_row_for_every_scheme() -> None:
    rows = rows_of(PAGE.read_text("utf-8"))
    assert rows[0] == TITLES
    assert [row[0] for row in rows[2:]] == [f"`{found.name}`" for found in scheme.every()]


def _content(both: Arms, prepared: Prepared, chosen: Scheme) -> QuantizedWeights:
    ranges = {"base": prepared.ranges, "adapted": prepared.ranges}
    return contents.of_adapted(both, chosen, recipe.find("emoji"), "merge-quantize", ranges)  # type: ignore[arg-type]


def _equal(chosen: Scheme, content: QuantizedWeights, twin: Path) -> str:
    """Whether the codes in the file are the simulation's, or the constants their values."""
    plain = chosen.decoded or chosen.control
    found = (stored.constants if plain else stored.codes)(onnx.load(twin))
    for layer, numbers in content.plan.items():
        weight = content.state[f"{layer}.weight"]
        if not np.array_equal(found[layer], (numbers.fake_stored if plain else numbers.codes)(weight).numpy()):
            return "differs"
    return "values equal" if plain else "codes equal"


def _row(both: Arms, prepared: Prepared, chosen: Scheme, folder: Path) -> list[str]:
    content = _content(both, prepared, chosen)
    x, t, h = (torch.from_numpy(prepared.inputs[k]) for k in ("sample", "timestep", "encoder_hidden_states"))
    unet = prepared.unet
    if not chosen.exported:
        with torch.no_grad(), fake.simulated(unet, content.plan) as model:
            simulated = model(x, t, h).sample
        with torch.no_grad():
            ran = bnb.converted(unet, content.state, content.plan, content.branches)(x, t, h).sample
        near = float((ran - simulated).norm() / simulated.norm()) < 1e-5
        same = "outputs equal" if near else "weights; it quantizes inputs itself"
        return [f"`{chosen.name}`", same, "-", *["-"] * len(CAPABILITIES), "runs"]
    twin = prepared.exporter.twin(content, chosen, folder / f"{chosen.name}.twin.onnx", {})
    assert np.isfinite(OnnxRunner(twin, 1)(prepared.inputs)).all()
    builds = ["-"] * len(CAPABILITIES)
    if "tensorrt" in chosen.runs:
        path = prepared.exporter.deployed(content, chosen, folder / f"{chosen.name}.onnx", {})
        made = [builder.build(path, capability) for capability in CAPABILITIES]
        builds = ["builds" if built.engine else "refused" for built in made]
    ran_by = "decoded values" if chosen.decoded else "runs"
    return [f"`{chosen.name}`", _equal(chosen, content, twin), ran_by, *builds, "-"]


@pytest.mark.slow
@builder.needed
def test_the_table_is_what_the_runtimes_do(demo_arms: Arms, prepared: Prepared, tmp_path: Path) -> None:
    rows = [_row(demo_arms, prepared, chosen, tmp_path) for chosen in scheme.every()]
    lines = [TITLES, ["---"] * len(TITLES), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    text = PAGE.read_text("utf-8")
    if os.environ.get("QCHECK_WRITE_DOCS"):
        PAGE.write_text(MARKED.sub(lambda found: f"{found[1]}{table}{found[3]}", text), "utf-8")
    else:
        found = MARKED.search(text)
        assert found is not None
        assert found[2] == table
