"""A base in the files that people have: whole or sharded, in 16 bit, under the name of a variant."""

import shutil
from pathlib import Path

import pytest
import torch

from qcheck.core.errors import UserError
from qcheck.model import load
from tests import families


def _saved(family: str, folder: Path, **how: object) -> Path:
    with families.quiet():
        families.FAMILIES[family]().save_pretrained(folder, **how)
    return folder


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    parts = load.load(str(folder)).family.parts()
    return {f"{place}.{name}": value for place, part in enumerate(parts) for name, value in part.state_dict().items()}


@pytest.mark.parametrize("family", ["sd1", "sd3"])
@pytest.mark.parametrize(
    "how",
    [{"variant": "fp16"}, {"max_shard_size": "40KB"}, {"variant": "bf16", "max_shard_size": "40KB"}],
    ids=["variant", "shards", "shards of a variant"],
)
def test_the_weights_are_those_of_plain_files(family: str, how: dict[str, str], tmp_path: Path) -> None:
    plain, other = _weights(_saved(family, tmp_path / "plain")), _weights(_saved(family, tmp_path / "other", **how))
    files = [path.name for path in (tmp_path / "other").rglob("*.safetensors")]
    assert all(how.get("variant", "") in name for name in files)
    assert len(files) > 10 or "max_shard_size" not in how
    assert plain.keys() == other.keys()
    assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_plain_files_are_taken_before_a_variant_and_a_part_may_have_the_variant_alone(tmp_path: Path) -> None:
    base = _saved("sd1", tmp_path / "base")
    shutil.copy(
        base / "unet" / "diffusion_pytorch_model.safetensors",
        base / "unet" / "diffusion_pytorch_model.fp16.safetensors",
    )
    assert load._variant(base, ["unet", "vae"]) is None
    (base / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert load._variant(base, ["unet", "vae"]) == "fp16"
    assert load.load(str(base)).source == str(base)


def test_parts_in_variants_that_they_do_not_share_are_an_error(tmp_path: Path) -> None:
    base = _saved("sd1", tmp_path / "base", variant="fp16")
    (base / "vae" / "diffusion_pytorch_model.fp16.safetensors").rename(
        base / "vae" / "diffusion_pytorch_model.bf16.safetensors"
    )
    with pytest.raises(UserError, match="do not share") as error:
        load.load(str(base))
    assert "vae bf16" in error.value.what
