"""Adapter files in every layout, written from known factors: what a trainer would have saved.

The names here are written down once more, from the trainers' own, and not taken from what reads them.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Part:
    """One layer's factors: ``down`` [r, in, ...], ``up`` [out, r] and alpha; None is a file without alphas."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float | None

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def change(self) -> torch.Tensor:
        """[out, in, ...] in double precision."""
        product = self.scale * self.up.double() @ self.down.double().flatten(1)
        return product.view(len(self.up), *self.down.shape[1:])

    def shaped_up(self) -> torch.Tensor:
        """``up`` as files hold it: [out, r, 1, 1] for convolutions."""
        return self.up.view(*self.up.shape, *[1] * (self.down.ndim - 2))


Parts = dict[str, Part]


def weights(pipe: Any) -> dict[str, torch.Tensor]:
    """Every layer of the denoiser and the text encoders with a weight that factors can change."""
    return {
        f"{component}.{name}": module.weight.detach()
        for component, part in pipe.components.items()
        if isinstance(part, torch.nn.Module) and component != "vae"
        for name, module in part.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }


# layers that the original code fuses, by the input that they share
_INPUTS = {
    r"attn\.to_[qkv]$|attention\.to_[qkv]$|proj_mlp$": "input",
    r"attn2\.to_[qkv]$": "second",
    r"attn\.add_[qkv]_proj$": "text",
}


def known(pipe: Any, wanted: str, alphas: bool = True, shared: bool = False, seed: int = 5) -> Parts:
    """Random factors for the layers that match ``wanted``, ranks and alphas that differ from layer to layer.

    ``shared`` gives all layers of a block that have one input the same ``down``, as one fused layer has.
    """
    generator = torch.Generator().manual_seed(seed)
    found: Parts = {}
    downs: Tensors = {}
    for place, (name, weight) in enumerate(weights(pipe).items()):
        if not re.search(wanted, name):
            continue
        rank = 4 if shared else 2 + place % 3
        down = 0.1 * torch.randn(rank, *weight.shape[1:], generator=generator)
        if shared:
            down = downs.setdefault(_replaced(name, _INPUTS), down)
        up = torch.randn(len(weight), rank, generator=generator)
        found[name] = Part(down, up, (1.0, 2.0, 6.0, 8.0)[place % 4] if alphas else None)
    return found


def _component(name: str) -> tuple[str, str]:
    component, _, layer = name.partition(".")
    return component, layer


def _written(name: str, part: Part, sides: tuple[str, str], alpha: bool = False) -> Tensors:
    found = {f"{name}.{sides[0]}.weight": part.down, f"{name}.{sides[1]}.weight": part.shaped_up()}
    return found | ({f"{name}.alpha": torch.tensor(part.alpha)} if alpha and part.alpha is not None else {})


PEFT, DIFFUSERS, KOHYA = ("lora_A", "lora_B"), ("lora.down", "lora.up"), ("lora_down", "lora_up")


def _config(parts: Parts) -> dict[str, Any]:
    """PEFT's config: the rank and alpha of most layers, and patterns for the rest, from the start of their names."""
    rank = Counter(part.rank for part in parts.values()).most_common()[0][0]
    alpha = Counter(part.alpha for part in parts.values()).most_common()[0][0]
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{name}": part.rank for name, part in parts.items() if part.rank != rank},
        "alpha_pattern": {f"^{name}": part.alpha for name, part in parts.items() if part.alpha != alpha},
        "target_modules": sorted(parts),
    }


def peft(parts: Parts, path: Path) -> Path:
    """diffusers' ``save_lora_weights``: PEFT's names, its config by component in the file."""
    by_component: dict[str, Parts] = {}
    for name, part in parts.items():
        component, layer = _component(name)
        by_component.setdefault(component, {})[layer] = part
    stored = {f"{c}.{key}": value for c, one in by_component.items() for key, value in _config(one).items()}
    tensors = _every(_written(name, part, PEFT) for name, part in parts.items())
    alphas = any(part.alpha is not None for part in parts.values())
    return _saved(tensors, path, {"lora_adapter_metadata": json.dumps(stored)} if alphas else {})


def peft_with_alphas(parts: Parts, path: Path) -> Path:
    """PEFT's names with an alpha key for each."""
    return _saved(_every(_written(name, part, PEFT, True) for name, part in parts.items()), path)


def peft_folder(parts: Parts, path: Path) -> Path:
    """PEFT's ``save_pretrained`` of one component: a folder."""
    inner = {_component(name)[1]: part for name, part in parts.items()}
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | _config(inner)))
    tensors = _every(_written(f"base_model.model.{name}", part, PEFT) for name, part in inner.items())
    _saved(tensors, path / "adapter_model.safetensors")
    return path


def peft_wrapped(parts: Parts, path: Path) -> Path:
    """PEFT's wrapper inside a component's name."""
    wrapped = {name.replace(".", ".base_model.model.", 1): part for name, part in parts.items()}
    return _saved(_every(_written(name, part, PEFT, True) for name, part in wrapped.items()), path)


def peft_named(parts: Parts, path: Path) -> Path:
    """PEFT's names with that of the adapter, as a model's own ``state_dict`` has them."""
    sides = ("lora_A.default_0", "lora_B.default_0")
    return _saved(_every(_written(name, part, sides, True) for name, part in parts.items()), path)


def diffusers(parts: Parts, path: Path) -> Path:
    """diffusers before PEFT."""
    sides = {False: DIFFUSERS, True: ("lora_linear_layer.down", "lora_linear_layer.up")}
    return _saved(_every(_written(n, part, sides[n.startswith("text_")]) for n, part in parts.items()), path)


_PROCESSOR = {
    r"\.to_([qkv])$": r".processor.to_\1_lora",
    r"\.to_out\.0$": r".processor.to_out_lora",
    r"self_attn\.(q|k|v|out)_proj$": r"self_attn.to_\1_lora",
}


def processors(parts: Parts, path: Path) -> Path:
    """diffusers' first layout: attention alone, in its processors."""
    return _saved(
        _every(_written(_replaced(name, _PROCESSOR), part, ("down", "up")) for name, part in parts.items()), path
    )


def bare_processors(parts: Parts, path: Path) -> Path:
    """``UNet2DConditionModel.save_attn_procs``: the same without a component."""
    inner = {_component(name)[1]: part for name, part in parts.items()}
    return processors(inner, path)


_FLAT = {
    "unet": "lora_unet",
    "transformer": "lora_transformer",
    "text_encoder": "lora_te",
    "text_encoder_2": "lora_te2",
}
_SEVERAL = _FLAT | {"text_encoder": "lora_te1"}
_THREE = _SEVERAL | {"text_encoder_3": "lora_te3"}
_FLUX = _SEVERAL | {"transformer": "lora_unet", "text_encoder_2": "lora_te3"}
_SD3 = _THREE | {"transformer": "lora_unet"}


def _leveled(name: str) -> str:
    """Text encoders with the level ``text_model``, as CLIP had when trainers took its names."""
    return re.sub(r"^(text_encoder\w*)\.encoder\.layers", r"\1.text_model.encoder.layers", name)


def _flat(name: str, beginnings: dict[str, str]) -> str:
    component, layer = _component(_leveled(name))
    return f"{beginnings[component]}_{layer}".replace(".", "_")


def _kohya(parts: Parts, path: Path, beginnings: dict[str, str]) -> Path:
    return _saved(
        _every(_written(_flat(name, beginnings), part, KOHYA, True) for name, part in parts.items()),
        path,
        {"ss_network_module": "networks.lora"},
    )


def kohya(parts: Parts, path: Path) -> Path:
    """sd-scripts for Stable Diffusion 1 and 2, and LyCORIS' LoCon."""
    return _kohya(parts, path, _FLAT)


def kohya_xl(parts: Parts, path: Path) -> Path:
    """sd-scripts for two text encoders with diffusers' blocks."""
    return _kohya(parts, path, _SEVERAL)


def lycoris(parts: Parts, path: Path) -> Path:
    """The LyCORIS library on a denoiser of diffusers."""
    return _kohya(parts, path, {"unet": "lycoris", "transformer": "lycoris"})


def _other(parts: Parts, path: Path, made: Callable[[Part], Tensors]) -> Path:
    flat = {name: f"lycoris_{_component(name)[1]}".replace(".", "_") for name in parts}
    groups = ({f"{flat[name]}.{key}": value for key, value in made(part).items()} for name, part in parts.items())
    return _saved(_every(groups), path)


def loha(parts: Parts, path: Path) -> Path:
    """LyCORIS' LoHa."""

    def made(part: Part) -> Tensors:
        ones = torch.ones(1, part.down[0].numel())
        return {
            "hada_w1_a": part.up,
            "hada_w1_b": part.down.flatten(1),
            "hada_w2_a": torch.ones(len(part.up), 1),
            "hada_w2_b": ones,
            "alpha": torch.tensor(part.alpha),
        }

    return _other(parts, path, made)


def lokr(parts: Parts, path: Path) -> Path:
    """LyCORIS' LoKr."""
    return _other(
        parts,
        path,
        lambda part: {
            "lokr_w1": torch.ones(1, 1),
            "lokr_w2_a": part.up,
            "lokr_w2_b": part.down,
            "alpha": torch.tensor(part.alpha),
        },
    )


def differences(parts: Parts, path: Path) -> Path:
    """Whole differences of weights (`diff`)."""
    return _other(parts, path, lambda part: {"diff": part.change().float()})


def one_trainer(parts: Parts, path: Path) -> Path:
    """OneTrainer: kohya's way with diffusers' names of the transformer."""
    return _kohya(parts, path, _THREE)


_RESNET = {
    r"\.conv1$": ".in_layers.2",
    r"\.time_emb_proj$": ".emb_layers.1",
    r"\.conv2$": ".out_layers.3",
    r"\.conv_shortcut$": ".skip_connection",
}
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def _sgm(layer: str, resnets: int) -> str:
    """The original UNet's name of one of diffusers', where each block has ``resnets`` on its way down."""
    if layer in _OUTSIDE:
        return _OUTSIDE[layer]
    side, rest = layer.split(".", 1)
    if side == "mid_block":
        kind, number, inner = rest.split(".", 2)
        place = {"resnets": 2 * int(number), "attentions": 1}[kind]
        return _replaced(f"middle_block.{place}.{inner}", _RESNET if kind == "resnets" else {})
    block, kind, number, inner = rest.split(".", 3)
    first = int(block) * (resnets + 1) + (1 if side == "down_blocks" else 0)
    start = "input_blocks" if side == "down_blocks" else "output_blocks"
    places = {
        "resnets": f"{first + int(number)}.0",
        "attentions": f"{first + int(number)}.1",
        "downsamplers": f"{first + resnets}.0",
        "upsamplers": f"{first + resnets}.2",
    }
    inner = {"downsamplers": "op"}.get(kind, inner)
    return _replaced(f"{start}.{places[kind]}.{inner}", _RESNET if kind == "resnets" else {})


def kohya_sgm(parts: Parts, path: Path) -> Path:
    """sd-scripts for SDXL: the original UNet's blocks."""
    named = {(f"unet.{_sgm(_component(n)[1], 1)}" if n.startswith("unet.") else n): part for n, part in parts.items()}
    return _kohya(named, path, _SEVERAL)


def _dotted(parts: Parts, path: Path, beginning: str) -> Path:
    named = {
        (f"{beginning}.{_sgm(_component(n)[1], 1)}" if n.startswith("unet.") else n): part for n, part in parts.items()
    }
    return _saved(_every(_written(name, part, KOHYA, True) for name, part in named.items()), path)


def sgm_dotted(parts: Parts, path: Path) -> Path:
    """The original UNet's blocks with dots, behind the component of diffusers."""
    return _dotted(parts, path, "unet")


def comfy_unet(parts: Parts, path: Path) -> Path:
    """The same behind ComfyUI's name of the denoiser."""
    return _dotted(parts, path, "diffusion_model")


BFL = {
    "double_blocks.#.img_attn.qkv": [f"transformer_blocks.#.attn.to_{x}" for x in "qkv"],
    "double_blocks.#.txt_attn.qkv": [f"transformer_blocks.#.attn.add_{x}_proj" for x in "qkv"],
    "double_blocks.#.img_attn.proj": ["transformer_blocks.#.attn.to_out.0"],
    "double_blocks.#.txt_attn.proj": ["transformer_blocks.#.attn.to_add_out"],
    "double_blocks.#.img_mlp.0": ["transformer_blocks.#.ff.net.0.proj"],
    "double_blocks.#.img_mlp.2": ["transformer_blocks.#.ff.net.2"],
    "double_blocks.#.txt_mlp.0": ["transformer_blocks.#.ff_context.net.0.proj"],
    "double_blocks.#.txt_mlp.2": ["transformer_blocks.#.ff_context.net.2"],
    "double_blocks.#.img_mod.lin": ["transformer_blocks.#.norm1.linear"],
    "double_blocks.#.txt_mod.lin": ["transformer_blocks.#.norm1_context.linear"],
    "single_blocks.#.linear1": [
        *(f"single_transformer_blocks.#.attn.to_{x}" for x in "qkv"),
        "single_transformer_blocks.#.proj_mlp",
    ],
    "single_blocks.#.linear2": ["single_transformer_blocks.#.proj_out"],
    "single_blocks.#.modulation.lin": ["single_transformer_blocks.#.norm.linear"],
    "img_in": ["x_embedder"],
    "txt_in": ["context_embedder"],
    "time_in.in_layer": ["time_text_embed.timestep_embedder.linear_1"],
    "time_in.out_layer": ["time_text_embed.timestep_embedder.linear_2"],
    "vector_in.in_layer": ["time_text_embed.text_embedder.linear_1"],
    "vector_in.out_layer": ["time_text_embed.text_embedder.linear_2"],
    "guidance_in.in_layer": ["time_text_embed.guidance_embedder.linear_1"],
    "guidance_in.out_layer": ["time_text_embed.guidance_embedder.linear_2"],
    "final_layer.linear": ["proj_out"],
    "final_layer.adaLN_modulation.1": ["norm_out.linear"],
}
CHROMA = BFL | {
    "distilled_guidance_layer.in_proj": ["distilled_guidance_layer.in_proj"],
    "distilled_guidance_layer.out_proj": ["distilled_guidance_layer.out_proj"],
    "distilled_guidance_layer.layers.#.in_layer": ["distilled_guidance_layer.layers.#.linear_1"],
    "distilled_guidance_layer.layers.#.out_layer": ["distilled_guidance_layer.layers.#.linear_2"],
}
BFL2 = {
    "double_blocks.#.img_attn.qkv": BFL["double_blocks.#.img_attn.qkv"],
    "double_blocks.#.txt_attn.qkv": BFL["double_blocks.#.txt_attn.qkv"],
    "double_blocks.#.img_attn.proj": ["transformer_blocks.#.attn.to_out.0"],
    "double_blocks.#.txt_attn.proj": ["transformer_blocks.#.attn.to_add_out"],
    "double_blocks.#.img_mlp.0": ["transformer_blocks.#.ff.linear_in"],
    "double_blocks.#.img_mlp.2": ["transformer_blocks.#.ff.linear_out"],
    "double_blocks.#.txt_mlp.0": ["transformer_blocks.#.ff_context.linear_in"],
    "double_blocks.#.txt_mlp.2": ["transformer_blocks.#.ff_context.linear_out"],
    "single_blocks.#.linear1": ["single_transformer_blocks.#.attn.to_qkv_mlp_proj"],
    "single_blocks.#.linear2": ["single_transformer_blocks.#.attn.to_out"],
    "double_stream_modulation_img.lin": ["double_stream_modulation_img.linear"],
    "double_stream_modulation_txt.lin": ["double_stream_modulation_txt.linear"],
    "single_stream_modulation.lin": ["single_stream_modulation.linear"],
    "img_in": ["x_embedder"],
    "txt_in": ["context_embedder"],
    "time_in.in_layer": ["time_guidance_embed.timestep_embedder.linear_1"],
    "time_in.out_layer": ["time_guidance_embed.timestep_embedder.linear_2"],
    "final_layer.linear": ["proj_out"],
    "final_layer.adaLN_modulation.1": ["norm_out.linear"],
}
_XLABS = {
    "double_blocks.#.processor.qkv_lora1": BFL["double_blocks.#.img_attn.qkv"],
    "double_blocks.#.processor.qkv_lora2": BFL["double_blocks.#.txt_attn.qkv"],
    "double_blocks.#.processor.proj_lora1": ["transformer_blocks.#.attn.to_out.0"],
    "double_blocks.#.processor.proj_lora2": ["transformer_blocks.#.attn.to_add_out"],
    "single_blocks.#.processor.qkv_lora": [f"single_transformer_blocks.#.attn.to_{x}" for x in "qkv"],
    "single_blocks.#.processor.proj_lora": ["single_transformer_blocks.#.proj_out"],
}
SAI = {
    "joint_blocks.#.x_block.attn.qkv": [f"transformer_blocks.#.attn.to_{x}" for x in "qkv"],
    "joint_blocks.#.x_block.attn2.qkv": [f"transformer_blocks.#.attn2.to_{x}" for x in "qkv"],
    "joint_blocks.#.context_block.attn.qkv": [f"transformer_blocks.#.attn.add_{x}_proj" for x in "qkv"],
    "joint_blocks.#.x_block.attn.proj": ["transformer_blocks.#.attn.to_out.0"],
    "joint_blocks.#.x_block.attn2.proj": ["transformer_blocks.#.attn2.to_out.0"],
    "joint_blocks.#.context_block.attn.proj": ["transformer_blocks.#.attn.to_add_out"],
    "joint_blocks.#.x_block.mlp.fc1": ["transformer_blocks.#.ff.net.0.proj"],
    "joint_blocks.#.x_block.mlp.fc2": ["transformer_blocks.#.ff.net.2"],
    "joint_blocks.#.context_block.mlp.fc1": ["transformer_blocks.#.ff_context.net.0.proj"],
    "joint_blocks.#.context_block.mlp.fc2": ["transformer_blocks.#.ff_context.net.2"],
    "joint_blocks.#.x_block.adaLN_modulation.1": ["transformer_blocks.#.norm1.linear"],
    "joint_blocks.#.context_block.adaLN_modulation.1": ["transformer_blocks.#.norm1_context.linear"],
    "x_embedder.proj": ["pos_embed.proj"],
    "context_embedder": ["context_embedder"],
    "t_embedder.mlp.0": ["time_text_embed.timestep_embedder.linear_1"],
    "t_embedder.mlp.2": ["time_text_embed.timestep_embedder.linear_2"],
    "y_embedder.mlp.0": ["time_text_embed.text_embedder.linear_1"],
    "y_embedder.mlp.2": ["time_text_embed.text_embedder.linear_2"],
    "final_layer.linear": ["proj_out"],
    "final_layer.adaLN_modulation.1": ["norm_out.linear"],
}


_Z_BLOCKS = ("layers", "noise_refiner", "context_refiner")
COMFY_Z_IMAGE = {
    **{f"{blocks}.#.attention.qkv": [f"{blocks}.#.attention.to_{x}" for x in "qkv"] for blocks in _Z_BLOCKS},
    **{f"{blocks}.#.attention.out": [f"{blocks}.#.attention.to_out.0"] for blocks in _Z_BLOCKS},
    **{
        f"{blocks}.#.{layer}": [f"{blocks}.#.{layer}"]
        for blocks in _Z_BLOCKS
        for layer in ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaLN_modulation.0")
    },
    "x_embedder": ["all_x_embedder.2-1"],
    "final_layer.linear": ["all_final_layer.2-1.linear"],
    "final_layer.adaLN_modulation.1": ["all_final_layer.2-1.adaLN_modulation.1"],
    **{layer: [layer] for layer in ("t_embedder.mlp.0", "t_embedder.mlp.2", "cap_embedder.1")},
}


def _halves_swapped(part: Part) -> Part:
    """diffusers' scale, shift as the original's shift, scale."""
    return replace(part, up=torch.cat(part.up.chunk(2)[::-1]))


def _fused(name: str, members: list[Part]) -> Part:
    """One layer whose outputs are the members' one after the other: one ``down`` where they share it."""
    first = members[0]
    if len(members) == 1:
        two = len(first.up) == 2 * first.down.shape[1] and re.search("final_layer.ada|context_block.ada", name)
        return _halves_swapped(first) if two else first
    scaled = [part.scale * part.up for part in members]
    if all(torch.equal(part.down, first.down) for part in members):
        down, up = first.down, torch.cat(scaled)
    else:
        down, up = torch.cat([part.down for part in members]), torch.block_diag(*scaled)
    if first.alpha is None:
        return Part(down, up, None)
    return Part(down, up / 2, 2.0 * len(down))


_BLOCKS = 40  # more than any of these models has of a kind


def original(parts: Parts, table: dict[str, list[str]]) -> Parts:
    """The transformer's parts by the original code's names, the rest as they are."""
    found = {name: part for name, part in parts.items() if not name.startswith("transformer.")}
    left = {name: part for name, part in parts.items() if name not in found}
    for name, members in table.items():
        for number in range(_BLOCKS) if "#" in name else [0]:
            inside = [f"transformer.{member}".replace("#", str(number)) for member in members]
            if all(member in left for member in inside):
                fused = name.replace("#", str(number))
                found[f"transformer.{fused}"] = _fused(fused, [left.pop(member) for member in inside])
    assert not left, f"this layout has no names for {sorted(left)}"
    return found


def _table(parts: Parts) -> dict[str, list[str]]:
    """The original code's names, by the layers."""
    if any("to_qkv_mlp_proj" in name for name in parts):
        return BFL2
    return CHROMA if any("single_transformer_blocks" in name for name in parts) else SAI


def _has_t5(parts: Parts, encoder: str) -> bool:
    return any(name.startswith(f"{encoder}.encoder.block") for name in parts)


def kohya_flux(parts: Parts, path: Path) -> Path:
    """sd-scripts for Flux."""
    beginnings = _FLUX | ({"text_encoder": "lora_te3"} if _has_t5(parts, "text_encoder") else {})
    return _kohya(original(parts, _table(parts)), path, beginnings)


def kohya_sd3(parts: Parts, path: Path) -> Path:
    """sd-scripts for Stable Diffusion 3."""
    return _kohya(original(parts, SAI), path, _SD3)


def musubi(parts: Parts, path: Path) -> Path:
    """musubi-tuner for Z-Image and Qwen-Image: kohya's way with diffusers' names behind `lora_unet_`."""
    return _kohya(parts, path, _FLAT | {"transformer": "lora_unet"})


def xlabs(parts: Parts, path: Path) -> Path:
    """x-flux: Flux's attention alone, without alphas."""
    named = {_component(name)[1]: part for name, part in original(parts, _XLABS).items()}
    return _saved(_every(_written(name, part, ("down", "up")) for name, part in named.items()), path)


_COMFY = {
    "transformer.": "diffusion_model.",
    "text_encoder.": "text_encoders.clip_l.transformer.",
    "text_encoder_2.": "text_encoders.clip_g.transformer.",
    "text_encoder_3.": "text_encoders.t5xxl.transformer.",
}


def comfy(parts: Parts, path: Path) -> Path:
    """ComfyUI's dotted names, for Flux or Stable Diffusion 3 by the layers."""
    t5 = _COMFY["text_encoder_3."]
    encoders = {f"{name}.": t5 for name in ("text_encoder", "text_encoder_2") if _has_t5(parts, name)}
    named = {_begun(_leveled(name), _COMFY | encoders): part for name, part in original(parts, _table(parts)).items()}
    return _saved(_every(_written(name, part, KOHYA, True) for name, part in named.items()), path)


def ai_toolkit(parts: Parts, path: Path) -> Path:
    """ai-toolkit for Z-Image and Qwen-Image: diffusers' names of the transformer behind `diffusion_model.`."""
    named = {_begun(name, {"transformer.": "diffusion_model."}): part for name, part in parts.items()}
    return _saved(_every(_written(name, part, PEFT, True) for name, part in named.items()), path)


def lightning(parts: Parts, path: Path) -> Path:
    """Qwen-Image-Lightning: diffusers' names of the transformer without its own."""
    named = {_component(name)[1]: part for name, part in parts.items()}
    return _saved(_every(_written(name, part, KOHYA, True) for name, part in named.items()), path)


def comfy_z_image(parts: Parts, path: Path) -> Path:
    """ComfyUI's dotted names for Z-Image."""
    named = {
        _begun(name, {"transformer.": "diffusion_model."}): part
        for name, part in original(parts, COMFY_Z_IMAGE).items()
    }
    return _saved(_every(_written(name, part, KOHYA, True) for name, part in named.items()), path)


def kohya_z_image(parts: Parts, path: Path) -> Path:
    """sd-scripts' way for Z-Image: ComfyUI's names, flat."""
    return _kohya(original(parts, COMFY_Z_IMAGE), path, {"transformer": "lora_unet"})


def ai_toolkit_flux2(parts: Parts, path: Path) -> Path:
    """ai-toolkit for FLUX.2: the original code's names behind ComfyUI's, without alphas."""
    named = {_begun(name, _COMFY): part for name, part in original(parts, _table(parts)).items()}
    return _saved(_every(_written(name, part, PEFT) for name, part in named.items()), path)


def original_peft_flux(parts: Parts, path: Path) -> Path:
    """The original code under PEFT: its names behind ``base_model.model.``, without alphas."""
    named = {_begun(name, {"transformer.": "base_model.model."}): part for name, part in original(parts, BFL).items()}
    return _saved(_every(_written(name, part, PEFT) for name, part in named.items()), path)


def _begun(name: str, beginnings: dict[str, str]) -> str:
    found = next(old for old in beginnings if name.startswith(old))
    return beginnings[found] + name.removeprefix(found)


def _replaced(name: str, table: dict[str, str]) -> str:
    for pattern, new in table.items():
        name = re.sub(pattern, new, name)
    return name


def _every(groups: Iterator[Tensors]) -> Tensors:
    found: Tensors = {}
    for group in groups:
        assert not set(found) & set(group)
        found |= group
    return found


def _saved(tensors: Tensors, path: Path, metadata: dict[str, str] | None = None) -> Path:
    save_file({name: value.clone().contiguous() for name, value in tensors.items()}, path, metadata or None)
    return path


Writer = Callable[[Parts, Path], Path]
