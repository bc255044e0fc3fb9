"""A base in the files that people have: whole or sharded, in 16 bit, under the name of a variant."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler
from safetensors.torch import load_file, save_file

from qcheck.core.errors import UserError
from qcheck.model import bases, load, parts
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
    assert parts.variant(base, ["unet", "vae"]) is None
    (base / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert parts.variant(base, ["unet", "vae"]) == "fp16"
    assert load.load(str(base)).source == str(base)


def test_parts_in_variants_that_they_do_not_share_are_an_error(tmp_path: Path) -> None:
    base = _saved("sd1", tmp_path / "base", variant="fp16")
    (base / "vae" / "diffusion_pytorch_model.fp16.safetensors").rename(
        base / "vae" / "diffusion_pytorch_model.bf16.safetensors"
    )
    with pytest.raises(UserError, match="do not share") as error:
        load.load(str(base))
    assert "vae bf16" in error.value.what


def _rewritten(file: Path, keep: Callable[[str], bool], **more: torch.Tensor) -> None:
    tensors = {name: value for name, value in load_file(file).items() if keep(name)}
    save_file(tensors | more, file, metadata={"format": "pt"})


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_weights_that_a_file_lacks_are_an_error_that_names_them_whichever_part_it_is(
    family: str, tmp_path: Path
) -> None:
    """The libraries would fill them with random numbers, other ones at every load, and only warn."""
    base = _saved(family, tmp_path / "base")
    for file in sorted(base.rglob("*.safetensors")):
        broken = Path(shutil.copytree(base, tmp_path / file.parent.name))
        name = max(load_file(file))
        _rewritten(broken / file.relative_to(base), lambda key, name=name: key != name)  # type: ignore[misc]
        with pytest.raises(UserError) as error:
            load.load(str(broken))
        said = error.value.what
        assert f"{file.parent.name} lacks weights: " in said
        assert name in said


def test_weights_that_the_config_does_not_ask_for_are_an_error_but_not_stored_positions(tmp_path: Path) -> None:
    base = _saved("sd1", tmp_path / "base")
    encoder = base / "text_encoder" / "model.safetensors"
    _rewritten(encoder, bool, **{"text_model.embeddings.position_ids": torch.arange(16)[None]})
    load.load(str(base))
    unet = base / "unet" / "diffusion_pytorch_model.safetensors"
    _rewritten(unet, bool, **{"add_embedding.linear_1.weight": torch.zeros(2, 2)})
    with pytest.raises(UserError, match=r"unet has weights that its config.json does not ask for: add_embedding"):
        load.load(str(base))


@pytest.mark.parametrize("folder", ["tokenizer", "tokenizer_2"])
def test_a_tokenizer_without_its_vocabulary_is_an_error(folder: str, tmp_path: Path) -> None:
    base = _saved("sdxl", tmp_path / "base")
    (base / folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=f"{folder} has no vocabulary"):
        load.load(str(base))


def test_a_vocabulary_in_the_files_of_older_releases_is_one(tmp_path: Path) -> None:
    base = _saved("sd1", tmp_path / "base")
    whole = base / "tokenizer" / "tokenizer.json"
    model = json.loads(whole.read_text())["model"]
    (base / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]))
    (base / "tokenizer" / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    whole.unlink()
    load.load(str(base))
    (base / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"nor merges.txt"):
        load.load(str(base))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 492265168\n", "Git LFS"),
        (b"\x00" * 7, "not a whole safetensors file"),
        (b"", "not a whole safetensors file"),
    ],
)
@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_a_part_that_is_no_file_of_weights_is_an_error(content: bytes, said: str, part: str, tmp_path: Path) -> None:
    base = _saved("sd1", tmp_path / "base")
    next((base / part).glob("*.safetensors")).write_bytes(content)
    with pytest.raises(UserError) as error:
        load.load(str(base))
    assert said in error.value.what


def test_code_that_comes_with_a_pipeline_is_not_run(tmp_path: Path) -> None:
    base = _saved("sd1", tmp_path / "base")
    index = json.loads((base / bases.INDEX).read_text())
    (base / bases.INDEX).write_text(json.dumps(index | {"vae": ["my_code", "MyVae"]}))
    with pytest.raises(UserError, match="vae is a MyVae of my_code"):
        load.load(str(base))


def test_a_solver_that_the_family_cannot_ask_is_an_error_that_names_it(tmp_path: Path) -> None:
    pipe = families.FAMILIES["flux"]()
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    with families.quiet():
        pipe.save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match="FlowMatchHeunDiscreteScheduler, which takes no sigmas"):
        load.load(str(tmp_path / "base"))


def test_a_decoder_with_more_layers_than_its_config_asks_for_is_an_error(tmp_path: Path) -> None:
    """Of a text encoder a decoder is left out, as T5's; of an autoencoder it is a part."""
    base = _saved("sd1", tmp_path / "base")
    vae = base / "vae" / "diffusion_pytorch_model.safetensors"
    _rewritten(vae, bool, **{"decoder.up_blocks.9.weight": torch.zeros(2, 2)})
    with pytest.raises(UserError, match=r"vae has weights that its config.json does not ask for: decoder"):
        load.load(str(base))


@pytest.mark.parametrize("part", ["transformer", "text_encoder_2"])
def test_a_part_that_is_quantized_already_is_said_by_name(part: str, tmp_path: Path) -> None:
    base = _saved("flux", tmp_path / "base")
    path = base / part / "config.json"
    config = json.loads(path.read_text()) | {
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}
    }
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"{part} is quantized already, by bitsandbytes"):
        load.load(str(base))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", "StableDiffusionPipeline"),
        ("conditioner.embedders.1.model.ln_final.weight", "StableDiffusionXLPipeline"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "StableDiffusion3Pipeline"),
        ("double_blocks.0.img_attn.qkv.weight", "FluxPipeline"),
    ],
)
def test_a_single_file_is_answered_by_the_command_that_converts_it(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_file({name: torch.zeros(1)}, path)
    with pytest.raises(UserError, match="is a single file") as error:
        load.load(str(path))
    assert f"from diffusers import {kind} as P" in error.value.fix
    assert f"P.from_single_file('{path}').save_pretrained('mine')" in error.value.fix


@pytest.mark.parametrize("content", ["[]", "3", '{"unet": ["diffusers"]}', "{", '{"unet": []}'])
def test_an_index_of_another_form_is_an_error(content: str, tmp_path: Path) -> None:
    (tmp_path / bases.INDEX).write_text(content)
    with pytest.raises(UserError, match="model_index"):
        load.load(str(tmp_path))
