"""A file as numbers that can be trained: every layout gives each layer its change, and comes back key by key."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from qcheck.core.errors import UserError
from qcheck.demo import library
from qcheck.model import load, lora
from qcheck.model.lora import note as calibrated
from qcheck.model.lora import trainable
from qcheck.spec.use import Use
from tests import layouts

LAYERS = r"^unet.*(attn1\.to_(q|v)|conv1)$|^text_encoder.*q_proj$"


@pytest.fixture(scope="module")
def pipe() -> object:
    return load.load(str(library.PIPELINE)).pipe


@pytest.mark.parametrize("write", [layouts.peft, layouts.diffusers, layouts.kohya, layouts.peft_folder])
def test_each_layer_has_its_change_and_all_other_keys_stay(
    pipe: object, write: Callable[[layouts.Parts, Path], Path], tmp_path: Path
) -> None:
    plain = write is layouts.diffusers  # it has no alphas, and attention alone
    known = layouts.known(pipe, r"^unet.*attn1\.to_(q|v)$" if plain else LAYERS, alphas=not plain)
    source = write(known, tmp_path / "adapter.safetensors")
    adapter = lora.read(Use(source=str(source), weight=1.0))
    found = trainable.find(pipe, adapter)
    assert {f"unet.{layer}" for layer in found} == {name for name in known if name.startswith("unet.")}
    factors = trainable.trained(found, adapter)
    for layer, part in found.items():
        expected = known[f"unet.{layer}"].change().float()
        assert torch.allclose(part.factors(factors).change(), expected, atol=1e-5), layer
    new = tmp_path / "new" / adapter.path.name
    new.parent.mkdir()
    trainable.write(adapter, {key: 2 * value for key, value in factors.items()}, {"qcheck.qat": "{}"}, new)
    before, after = load_file(adapter.path), load_file(new)
    assert set(before) == set(after)
    for key, value in before.items():
        assert after[key].dtype == value.dtype
        assert torch.equal(after[key], 2 * value if key in factors else value), key
    with safe_open(new, "pt") as stream:
        assert stream.metadata()["qcheck.qat"] == "{}"
    again = lora.contents_of(lora.names_of(pipe), lora.read(Use(source=str(new), weight=1.0))).factors
    for name, part in known.items():
        scale = 4 if name.startswith("unet.") else 1
        assert torch.allclose(again[name].change(), scale * part.change().float(), atol=1e-4), name


def _calibrated(tmp_path: Path, source: str) -> lora.Adapter:
    adapter = lora.read(Use(source=str(library.ADAPTERS / "faint.safetensors"), weight=1.0))
    gap = calibrated.Gap(survival=1.0, effect_to_error=0.0, excess_error=0.0)
    note = calibrated.Note(
        qcheck="0",
        source=source,
        weight=1.0,
        base="b",
        scheme="int8",
        order="quantize-merge",
        recipe="emoji",
        steps=1,
        seed=0,
        before=gap,
        after=gap,
    )
    trainable.write(adapter, {}, {calibrated.KEY: note.model_dump_json()}, tmp_path / "new.safetensors")
    return lora.read(Use(source=str(tmp_path / "new.safetensors"), weight=1.0))


def test_a_calibrated_adapter_is_no_reference_of_its_own(tmp_path: Path) -> None:
    original = lora.read(Use(source=str(library.ADAPTERS / "faint.safetensors"), weight=1.0))
    other = lora.read(Use(source=str(library.ADAPTERS / "flat.safetensors"), weight=1.0))
    new = _calibrated(tmp_path, original.digest)
    calibrated.require_references([new], [original])
    calibrated.require_references([original], [])
    with pytest.raises(UserError, match="no reference of its own"):
        calibrated.require_references([new], [])
    with pytest.raises(UserError, match="was calibrated from a file of digest"):
        calibrated.require_references([new], [other])
    damaged = json.loads(new.metadata[calibrated.KEY])
    del damaged["source"]
    new.metadata[calibrated.KEY] = json.dumps(damaged)
    with pytest.raises(UserError, match="cannot be read"):
        calibrated.note(new)
