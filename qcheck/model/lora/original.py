"""Names of layers in the original code, as trainers write them, and the layers of diffusers that they stand for.

``#`` is the block's number, dots are written as underscores. Where one layer stands for several, its outputs are the
outputs of those layers, concatenated. Some names stand for other layers in another base.
"""

import re

_Table = dict[str, tuple[str, ...]]

_QKV = tuple(f"transformer_blocks.#.attn.to_{part}" for part in "qkv")
_ADDED = tuple(f"transformer_blocks.#.attn.add_{part}_proj" for part in "qkv")
_SECOND = tuple(f"transformer_blocks.#.attn2.to_{part}" for part in "qkv")
_SINGLE = tuple(f"single_transformer_blocks.#.attn.to_{part}" for part in "qkv")

_FLUX = {
    "double_blocks_#_img_attn_qkv": _QKV,
    "double_blocks_#_txt_attn_qkv": _ADDED,
    "double_blocks_#_img_attn_proj": ("transformer_blocks.#.attn.to_out.0",),
    "double_blocks_#_txt_attn_proj": ("transformer_blocks.#.attn.to_add_out",),
    "double_blocks_#_img_mlp_0": ("transformer_blocks.#.ff.net.0.proj",),
    "double_blocks_#_img_mlp_2": ("transformer_blocks.#.ff.net.2",),
    "double_blocks_#_txt_mlp_0": ("transformer_blocks.#.ff_context.net.0.proj",),
    "double_blocks_#_txt_mlp_2": ("transformer_blocks.#.ff_context.net.2",),
    "double_blocks_#_img_mod_lin": ("transformer_blocks.#.norm1.linear",),
    "double_blocks_#_txt_mod_lin": ("transformer_blocks.#.norm1_context.linear",),
    "single_blocks_#_linear1": (*_SINGLE, "single_transformer_blocks.#.proj_mlp"),
    "single_blocks_#_linear2": ("single_transformer_blocks.#.proj_out",),
    "single_blocks_#_modulation_lin": ("single_transformer_blocks.#.norm.linear",),
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in_in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in_out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in_in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in_out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in_in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in_out_layer": ("time_text_embed.guidance_embedder.linear_2",),
}
_XLABS = {
    "double_blocks_#_processor_qkv_lora1": _QKV,
    "double_blocks_#_processor_qkv_lora2": _ADDED,
    "double_blocks_#_processor_proj_lora1": ("transformer_blocks.#.attn.to_out.0",),
    "double_blocks_#_processor_proj_lora2": ("transformer_blocks.#.attn.to_add_out",),
    "single_blocks_#_processor_qkv_lora": _SINGLE,
    "single_blocks_#_processor_proj_lora": ("single_transformer_blocks.#.proj_out",),
}
_SD3 = {
    "joint_blocks_#_x_block_attn_qkv": _QKV,
    "joint_blocks_#_x_block_attn2_qkv": _SECOND,
    "joint_blocks_#_context_block_attn_qkv": _ADDED,
    "joint_blocks_#_x_block_attn_proj": ("transformer_blocks.#.attn.to_out.0",),
    "joint_blocks_#_x_block_attn2_proj": ("transformer_blocks.#.attn2.to_out.0",),
    "joint_blocks_#_context_block_attn_proj": ("transformer_blocks.#.attn.to_add_out",),
    "joint_blocks_#_x_block_mlp_fc1": ("transformer_blocks.#.ff.net.0.proj",),
    "joint_blocks_#_x_block_mlp_fc2": ("transformer_blocks.#.ff.net.2",),
    "joint_blocks_#_context_block_mlp_fc1": ("transformer_blocks.#.ff_context.net.0.proj",),
    "joint_blocks_#_context_block_mlp_fc2": ("transformer_blocks.#.ff_context.net.2",),
    "joint_blocks_#_x_block_adaLN_modulation_1": ("transformer_blocks.#.norm1.linear",),
    "joint_blocks_#_context_block_adaLN_modulation_1": ("transformer_blocks.#.norm1_context.linear",),
    "x_embedder_proj": ("pos_embed.proj",),
    "context_embedder": ("context_embedder",),
    "t_embedder_mlp_0": ("time_text_embed.timestep_embedder.linear_1",),
    "t_embedder_mlp_2": ("time_text_embed.timestep_embedder.linear_2",),
    "y_embedder_mlp_0": ("time_text_embed.text_embedder.linear_1",),
    "y_embedder_mlp_2": ("time_text_embed.text_embedder.linear_2",),
}
_FLUX2: _Table = {
    "double_blocks_#_img_mlp_0": ("transformer_blocks.#.ff.linear_in",),
    "double_blocks_#_img_mlp_2": ("transformer_blocks.#.ff.linear_out",),
    "double_blocks_#_txt_mlp_0": ("transformer_blocks.#.ff_context.linear_in",),
    "double_blocks_#_txt_mlp_2": ("transformer_blocks.#.ff_context.linear_out",),
    "single_blocks_#_linear1": ("single_transformer_blocks.#.attn.to_qkv_mlp_proj",),
    "single_blocks_#_linear2": ("single_transformer_blocks.#.attn.to_out",),
    "time_in_in_layer": ("time_guidance_embed.timestep_embedder.linear_1",),
    "time_in_out_layer": ("time_guidance_embed.timestep_embedder.linear_2",),
    "guidance_in_in_layer": ("time_guidance_embed.guidance_embedder.linear_1",),
    "guidance_in_out_layer": ("time_guidance_embed.guidance_embedder.linear_2",),
    "double_stream_modulation_img_lin": ("double_stream_modulation_img.linear",),
    "double_stream_modulation_txt_lin": ("double_stream_modulation_txt.linear",),
    "single_stream_modulation_lin": ("single_stream_modulation.linear",),
}
_CHROMA = {
    "distilled_guidance_layer_in_proj": ("distilled_guidance_layer.in_proj",),
    "distilled_guidance_layer_out_proj": ("distilled_guidance_layer.out_proj",),
    "distilled_guidance_layer_layers_#_in_layer": ("distilled_guidance_layer.layers.#.linear_1",),
    "distilled_guidance_layer_layers_#_out_layer": ("distilled_guidance_layer.layers.#.linear_2",),
}
_BOTH = {"final_layer_linear": ("proj_out",), "final_layer_adaLN_modulation_1": ("norm_out.linear",)}
_Z_IMAGE: _Table = {
    f"{blocks}_#_attention_{part}": tuple(f"{blocks}.#.attention.{layer}" for layer in layers)
    for blocks in ("layers", "noise_refiner", "context_refiner")
    for part, layers in {"qkv": ("to_q", "to_k", "to_v"), "out": ("to_out.0",)}.items()
} | {
    "x_embedder": ("all_x_embedder.2-1",),
    "final_layer_linear": ("all_final_layer.2-1.linear",),
    "final_layer_adaLN_modulation_1": ("all_final_layer.2-1.adaLN_modulation.1",),
}
_OWN = {"x_embedder": ("x_embedder",)}  # diffusers' own name in Flux, which is the original one of Z-Image
_TABLES: tuple[_Table, ...] = (_FLUX | _XLABS | _SD3 | _CHROMA | _BOTH | _OWN, _FLUX2, _Z_IMAGE)
_NUMBER = re.compile(r"((?<=_blocks_)|(?<=^layers_)|(?<=_refiner_)|(?<=_layer_layers_))\d+")
# modulations of two parts: in the original shift is first, in diffusers scale
SWAPPED = ("norm_out.linear", "norm1_context.linear")


def layers(name: str) -> list[tuple[str, ...]]:
    """The denoiser's layers in diffusers that ``name`` stands for, in each kind of denoiser that has such a name."""
    flat = name.replace(".", "_")
    number, template = _NUMBER.search(flat), _NUMBER.sub("#", flat, count=1)
    stands_for = (table[template] for table in _TABLES if template in table)
    return [tuple(layer.replace("#", number[0] if number else "#") for layer in part) for part in stands_for]


_RESNET = {
    "in_layers_0": "norm1",
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_0": "norm2",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
_OUTSIDE = {
    "input_blocks_0_0": "conv_in",
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}


def unet_layer(name: str, layers_per_block: int) -> str | None:
    """Diffusers' name, with underscores for dots, of a layer of the original UNet; None where it is no such name.

    A level has ``layers_per_block`` pairs of a ResNet and an attention on its way down and one more on its way up, each
    of which is a block of the original; a change of size is the last block's, or on the way down a block of its own.
    """
    flat = name.replace(".", "_")
    if flat in _OUTSIDE:
        return _OUTSIDE[flat]
    match = re.match(r"(?P<side>input|middle|output)_blocks?_(?P<block>\d+)_(?P<rest>.+)$", flat)
    if match is None:
        return None
    block, rest = int(match["block"]), match["rest"]
    if match["side"] == "middle":
        kind = "attentions_0" if block == 1 else f"resnets_{block // 2}"
        return f"mid_block_{kind}_{_RESNET.get(rest, rest)}"
    level, number = divmod(block - (match["side"] == "input"), layers_per_block + 1)
    place, _, inner = rest.partition("_")
    if inner == "op":
        return f"down_blocks_{level}_downsamplers_0_conv"
    if inner == "conv":
        return f"up_blocks_{level}_upsamplers_0_conv"
    side = "down" if match["side"] == "input" else "up"
    kind = "resnets" if place == "0" else "attentions"
    return f"{side}_blocks_{level}_{kind}_{number}_{_RESNET.get(inner, inner)}"
