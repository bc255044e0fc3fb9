"""Families with a language model as text encoder, whose denoisers are exported in real numbers and with a mask."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from qcheck.device import replay
from qcheck.diagnose.sensitivity import through_rescaling
from qcheck.model import family, graph
from qcheck.model.components import copied
from qcheck.model.family import language, rotary
from qcheck.model.quiet import quiet
from qcheck.quantize import artifact, plan
from qcheck.runtime.ort_runner import session
from qcheck.sampling.setup import combined
from qcheck.spec.probe import Probe
from tests import families


def test_a_rotation_is_a_product_of_complex_numbers() -> None:
    draws = torch.Generator().manual_seed(0)
    x, angles = torch.randn(2, 5, 3, 8, generator=draws), torch.randn(2, 5, 4, generator=draws)
    turns = torch.polar(torch.ones_like(angles), angles)
    product = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns[:, :, None]
    rotated = rotary.rotate(x, rotary.rotation(turns))
    assert (rotated - torch.view_as_real(product).flatten(3)).abs().max() < 1e-6


@pytest.mark.parametrize(("height", "width"), [(16, 16), (10, 14)], ids=["whole", "padded"])
@pytest.mark.parametrize("words", [(7, 300), (32, 33)], ids=str)
def test_rows_of_z_image_are_those_of_diffusers_whatever_their_prompts_length(
    words: tuple[int, int], height: int, width: int
) -> None:
    pipe = families.FAMILIES["z-image"]()
    made = family.ZImage(pipe)
    draws = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 16, height, width, generator=draws)
    prompts = [torch.randn(count, 32, generator=draws) for count in words]
    with torch.no_grad():
        theirs = pipe.transformer(list(latents[:, :, None]), torch.tensor([0.3, 0.3]), prompts, return_dict=False)[0]
        conditions = {name: value.numpy() for name, value in language.padded(prompts).items()}
        fed = made.feed(latents.numpy(), 700.0, conditions)
        ours = made.entry(pipe.transformer)(**{name: torch.from_numpy(value) for name, value in fed.items()})
        again = pipe.transformer(list(latents[:, :, None]), torch.tensor([0.3, 0.3]), prompts, return_dict=False)[0]
    wanted = -torch.cat(theirs, dim=1).transpose(0, 1)
    assert (ours - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert all(torch.equal(one, other) for one, other in zip(theirs, again, strict=True))  # its own processor is back
    assert np.isfinite(ours.numpy()).all()


@pytest.mark.parametrize(("height", "width"), [(16, 16), (10, 14)], ids=str)
def test_rows_of_qwen_image_are_those_of_diffusers_whatever_their_prompts_length(height: int, width: int) -> None:
    pipe: Any = families.FAMILIES["qwen-image"]()
    made = family.QwenImage(pipe)
    draws = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 16, height, width, generator=draws)
    prompts = [torch.randn(count, 32, generator=draws) for count in (7, 300)]
    conditions = {name: value.numpy() for name, value in language.padded(prompts).items()}
    fed = made.feed(latents.numpy(), 700.0, conditions)
    with torch.no_grad():
        ours = made.entry(pipe.transformer)(**{name: torch.from_numpy(value) for name, value in fed.items()})
        for row, prompt in enumerate(prompts):
            wanted = pipe.transformer(
                pipe._pack_latents(latents[row : row + 1], 1, 16, height, width),
                prompt[None],
                timestep=torch.tensor([0.7]),
                img_shapes=[[(1, height // 2, width // 2)]],
                return_dict=False,
            )[0]
            packed = pipe._pack_latents(ours[row : row + 1], 1, 16, height, width)
            assert (packed - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_the_rescaling_of_a_guided_output_is_that_of_the_pipeline_on_host_and_board() -> None:
    draws = torch.Generator().manual_seed(0)
    outputs = torch.randn(2, 16, 6, 8, generator=draws, dtype=torch.float64)
    pack = families.FAMILIES["qwen-image"]()._pack_latents
    negative, positive = (pack(branch[None], 1, 16, 6, 8) for branch in outputs)
    guided = negative + 4.0 * (positive - negative)
    wanted = guided * (positive.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))  # as the pipeline's
    ours = combined(outputs, 2, 4.0, 2)
    assert torch.allclose(pack(ours, 1, 16, 6, 8), wanted, atol=1e-12)
    plain = combined(outputs, 2, 4.0, 0)
    assert not torch.allclose(plain, ours)
    on_board = replay.rescaled(plain[0].numpy(), outputs[1].numpy(), 2)
    assert np.allclose(on_board, ours[0].numpy(), atol=1e-12)


def test_the_direction_of_a_gradient_goes_through_the_rescaling() -> None:
    draws = torch.Generator().manual_seed(0)
    outputs, change, z = (torch.randn(rows, 4, 4, 4, generator=draws, dtype=torch.float64) for rows in (2, 2, 1))
    through = through_rescaling(torch.cat([-3.0 * z, 4.0 * z]), outputs, 4.0, 2)
    step = 1e-6
    ahead, behind = (float((z * combined(outputs + sign * step * change, 2, 4.0, 2)).sum()) for sign in (1, -1))
    assert float((through * change).sum()) == pytest.approx((ahead - behind) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("name", ["z-image", "qwen-image"])
def test_the_text_encoder_that_is_exported_has_the_embeddings_of_the_pipeline(name: str) -> None:
    pipe = families.FAMILIES[name]()
    kind = family.find(pipe.config)
    assert kind is not None
    made: Any = kind(pipe)
    given = {"prompt": "a red fox", "negative": "", "weights": (), "seed": 5, "guidance": 0.0, "steps": 2}
    wanted = made.conditions(Probe.model_validate({**given, "width": None, "height": None}))
    tokens = made.tokens("text_encoder", ["a red fox"])
    with torch.no_grad():
        (states,) = made.reader(pipe.text_encoder)(**tokens)
    count = int(wanted["encoder_hidden_states_mask"].sum())
    first = tokens["input_ids"].shape[1] - wanted["encoder_hidden_states"].shape[1]
    found = states[0, first : first + count]
    assert torch.allclose(found, wanted["encoder_hidden_states"][0, :count], atol=1e-5)
    assert not wanted["encoder_hidden_states"][0, count:].any()


@pytest.mark.parametrize("name", ["flux2-klein", "chroma"])
def test_the_text_encoder_that_is_exported_pads_as_the_pipeline_does(name: str) -> None:
    """FLUX.2 reads the embeddings of padding too."""
    pipe = families.FAMILIES[name]()
    kind = family.find(pipe.config)
    assert kind is not None
    made = kind(pipe)
    given = {"prompt": "a red fox", "negative": "", "weights": (), "seed": 5, "guidance": 0.0, "steps": 2}
    pipe.text_encoder.eval()
    wanted = made.conditions(Probe.model_validate({**given, "width": None, "height": None}))
    with torch.no_grad():
        states = made.reader(pipe.text_encoder)(**made.tokens("text_encoder", ["a red fox"]))
    assert torch.allclose(torch.cat(states, dim=-1), wanted["encoder_hidden_states"], atol=1e-5)


def test_the_graphs_of_qwen_image_compute_what_torch_does(tmp_path: Path) -> None:
    pipe = families.FAMILIES["qwen-image"]()
    made, draws = family.QwenImage(pipe), torch.Generator().manual_seed(0)
    latents = torch.randn(2, 16, 10, 14, generator=draws)
    conditions = {name: v.numpy() for name, v in language.padded([torch.randn(9, 32), torch.randn(30, 32)]).items()}
    fed = made.feed(latents.numpy(), 700.0, conditions)
    denoiser, decoder = made.component(fed), made.others((1, 16, 10, 14))[-1]
    for part, model, inputs in (
        (denoiser, graph.export(denoiser, "float32"), fed),
        (decoder, artifact.unquantized(decoder, "float32", False), {"latent_sample": latents.numpy()}),
    ):
        with torch.no_grad(), quiet():
            wanted = part.module(**{name: torch.from_numpy(value) for name, value in inputs.items()}).numpy()
        path = tmp_path / f"{part.name}.onnx"
        ir.save(model, path)
        (found,) = session(path, 1).run(None, dict(inputs))
        assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max(), part.name


def test_frequencies_keep_their_type_in_another_compute_type() -> None:
    encoder = copied(families.FAMILIES["z-image"]().text_encoder, dtype=torch.float16)
    assert encoder.layers[0].mlp.up_proj.weight.dtype == torch.float16
    assert encoder.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("z-image", {"siglip_feat_dim": 8}, "also takes pictures"),
        ("z-image", {"all_patch_size": [4]}, "patches of"),
        ("z-image", {"axes_lens": [300, 64, 64]}, "places for 298 tokens"),
        ("qwen-image", {"zero_cond_t": True}, "zero_cond_t"),
        ("qwen-image", {"patch_size": 1}, "patches of 1"),
    ],
)
def test_a_denoiser_of_another_kind_is_refused(name: str, change: dict[str, Any], said: str) -> None:
    pipe = families.FAMILIES[name]()
    kind = family.find(pipe.config)
    assert kind is not None
    assert kind(pipe).unsupported() is None
    pipe.transformer.register_to_config(**change)
    assert said in str(kind(pipe).unsupported())


def test_what_nothing_reads_is_no_layer_to_quantize() -> None:
    """The prompt's half of the last block, which an exported graph does not have."""
    made = family.QwenImage(families.FAMILIES["qwen-image"]())
    layers = {name for name, _ in plan.linear_layers(made.module)}
    dead = {f"transformer_blocks.1.{name}" for name in ("attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2")}
    assert {name for name, layer in made.module.named_modules() if isinstance(layer, nn.Linear)} - layers == dead
