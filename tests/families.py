"""Tiny pipelines of every family, with random weights under a seed: what is real is their structure."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from qcheck.demo import library
from qcheck.model.quiet import quiet

_WORDS = 16  # tokens of a prompt


def _clip(seed: int, kind: type[Any] = CLIPTextModel, width: int = 32) -> Any:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=2000,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=_WORDS,
        eos_token_id=_tokenizer().eos_token_id,
        bos_token_id=_tokenizer().bos_token_id,
    )
    return kind(config)


def _t5(seed: int) -> T5EncoderModel:
    torch.manual_seed(seed)
    size = {"d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    return T5EncoderModel(T5Config(vocab_size=2000, feed_forward_proj="gated-gelu", **size))


def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(library.PIPELINE / "tokenizer")


def _vae(channels: int, shift: float = 0.0) -> AutoencoderKL:
    torch.manual_seed(7)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 16),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=8,
        sample_size=32,
        scaling_factor=0.7,
        shift_factor=shift or None,
    )


def _unet(**more: Any) -> UNet2DConditionModel:
    torch.manual_seed(11)
    return UNet2DConditionModel(
        sample_size=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=16,
        **{"attention_head_dim": (1, 2), "cross_attention_dim": 32} | more,
    )


def _euler(output: str) -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(
        beta_schedule="scaled_linear", prediction_type=output, timestep_spacing="leading", steps_offset=1
    )


def sd1(output: str = "epsilon", **unet: Any) -> StableDiffusionPipeline:
    """One text encoder, a UNet, output eps."""
    parts = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    return StableDiffusionPipeline(
        vae=_vae(4),
        text_encoder=_clip(1),
        tokenizer=_tokenizer(),
        unet=_unet(**unet),
        scheduler=_euler(output),
        requires_safety_checker=False,
        **parts,
    )


def sd2() -> StableDiffusionPipeline:
    """As ``sd1`` with output v and linear projections, as Stable Diffusion 2.1."""
    return sd1("v_prediction", use_linear_projection=True)


def sdxl() -> StableDiffusionXLPipeline:
    """Two text encoders, a pooled embedding and sizes as added conditions."""
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    return StableDiffusionXLPipeline(
        vae=_vae(4),
        text_encoder=_clip(1),
        text_encoder_2=_clip(2, CLIPTextModelWithProjection),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        unet=_unet(
            **added,
            cross_attention_dim=64,
            projection_class_embeddings_input_dim=6 * 8 + 32,
            use_linear_projection=True,
            transformer_layers_per_block=(1, 1),
        ),
        scheduler=_euler("epsilon"),
    )


def sd35_medium() -> StableDiffusion3Pipeline:
    """As ``sd3`` with a second attention in some blocks and normalised queries and keys."""
    return sd3(dual_attention_layers=(0,), qk_norm="rms_norm")


def sd3(t5: bool = True, **more: Any) -> StableDiffusion3Pipeline:
    """Three text encoders, a joint transformer, flow matching."""
    torch.manual_seed(12)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=64,
        caption_projection_dim=64,
        pooled_projection_dim=64,
        out_channels=16,
        pos_embed_max_size=24,
        **more,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(16, 0.1),
        text_encoder=_clip(1, CLIPTextModelWithProjection),
        tokenizer=_tokenizer(),
        text_encoder_2=_clip(2, CLIPTextModelWithProjection),
        tokenizer_2=_tokenizer(),
        text_encoder_3=_t5(3) if t5 else None,
        tokenizer_3=_tokenizer() if t5 else None,
    )


def sd3_without_t5() -> StableDiffusion3Pipeline:
    """As ``sd3`` without its third text encoder, as people save memory."""
    return sd3(t5=False)


def flux(guided: bool = True) -> FluxPipeline:
    """A transformer over packed latents, flow matching with a shift by size; guidance is an input."""
    torch.manual_seed(13)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        guidance_embeds=guided,
        axes_dims_rope=(8, 12, 12),
    )
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=_vae(16, 0.1),
        text_encoder=_clip(1),
        tokenizer=_tokenizer(),
        text_encoder_2=_t5(3),
        tokenizer_2=_tokenizer(),
    )


def flux_schnell() -> FluxPipeline:
    """As ``flux`` without guidance."""
    return flux(guided=False)


_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)


def _letters() -> Qwen2Tokenizer:
    """A Qwen tokenizer without merges: each byte is a token."""
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {piece: place for place, piece in enumerate([*sorted(ByteLevel.alphabet()), *marks])}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": marks[1:]})
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


_QWEN = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def z_image() -> ZImagePipeline:
    """One transformer over the picture's and the prompt's tokens; a language model reads the prompt in a chat."""
    torch.manual_seed(14)
    transformer = ZImageTransformer2DModel(
        in_channels=16,
        dim=64,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[8, 12, 12],
        axes_lens=[544, 64, 64],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    torch.manual_seed(1)
    return ZImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_vae(16, 0.1),
        text_encoder=Qwen3Model(Qwen3Config(**_QWEN, head_dim=16)),
        tokenizer=_letters(),
    )


def qwen_image() -> QwenImagePipeline:
    """A joint transformer over packed latents of a video's autoencoder; the text encoder can look at pictures too."""
    torch.manual_seed(15)
    transformer = QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(8, 12, 12),
    )
    torch.manual_seed(1)
    sections = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    looking = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    config = Qwen2_5_VLConfig(text_config=_QWEN | {"rope_parameters": sections}, vision_config=looking)
    torch.manual_seed(7)
    vae = AutoencoderKLQwenImage(base_dim=8, z_dim=16, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False])
    return QwenImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=_letters(),
    )


def _vae_flux2() -> AutoencoderKLFlux2:
    torch.manual_seed(7)
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


def flux2_klein_base() -> Flux2KleinPipeline:
    """As ``flux2_klein`` before its distillation, with a second branch of guidance."""
    return flux2_klein(distilled=False)


def flux2_klein(distilled: bool = True) -> Flux2KleinPipeline:
    """A transformer over normalised patches of latents, told the prompt by three inner states of a language model."""
    torch.manual_seed(14)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=3 * 32,
        guidance_embeds=False,
        axes_dims_rope=(8, 8, 8, 8),
        timestep_guidance_channels=64,
    )
    vae = _vae_flux2()
    torch.manual_seed(4)
    return Flux2KleinPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=vae,
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**_QWEN | {"num_hidden_layers": 28}, head_dim=16)),
        tokenizer=_letters(),
        is_distilled=distilled,
    )


def chroma() -> ChromaPipeline:
    """As ``flux`` with a T5 alone, a second branch of guidance, and modulations by a network of their own."""
    torch.manual_seed(15)
    with quiet():  # it imports a class from where that is deprecated
        transformer = ChromaTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=64,
            axes_dims_rope=(8, 12, 12),
            approximator_num_channels=64,
            approximator_hidden_dim=32,
            approximator_layers=2,
        )
    transformer.distilled_guidance_layer.in_proj.weight.data *= (
        0.3  # float16 rounds the time, which random weights amplify
    )
    return ChromaPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=_vae(16, 0.1),
        text_encoder=_t5(3),
        tokenizer=_tokenizer(),
    )


def _gemma_tokenizer() -> GemmaTokenizer:
    special = ("<pad>", "<eos>", "<bos>", "<unk>")
    known = {chr(code): place for place, code in enumerate(range(32, 127), len(special))}
    return GemmaTokenizer(vocab={token: place for place, token in enumerate(special)} | known | {"▁": 120}, merges=[])


def _gemma2(seed: int) -> Gemma2Model:
    torch.manual_seed(seed)
    size = {"hidden_size": 32, "intermediate_size": 32, "head_dim": 16, "num_attention_heads": 2}
    return Gemma2Model(Gemma2Config(vocab_size=300, num_hidden_layers=2, num_key_value_heads=1, **size))


def _vae_dc() -> AutoencoderDC:
    torch.manual_seed(7)
    block = {"block_out_channels": (16, 16), "block_types": "ResBlock"}
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in block.items()}
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=8,
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        scaling_factor=0.7,
        **sides,
    )


def _sana(**more: Any) -> SanaTransformer2DModel:
    torch.manual_seed(16)
    return SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=16,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=32,
        cross_attention_dim=64,
        caption_channels=32,
        sample_size=16,
        timestep_scale=0.5,
        **more,
    )


def sana() -> SanaPipeline:
    """Linear attention over latents of a deep autoencoder, told an instruction and the prompt by a language model."""
    return SanaPipeline(
        transformer=_sana(),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=2
        ),
        vae=_vae_dc(),
        text_encoder=_gemma2(4),
        tokenizer=_gemma_tokenizer(),
    )


def sana_sprint() -> SanaSprintPipeline:
    """As ``sana``, a consistency model that is told the guidance."""
    return SanaSprintPipeline(
        transformer=_sana(guidance_embeds=True, qk_norm="rms_norm_across_heads"),
        scheduler=SCMScheduler(),
        vae=_vae_dc(),
        text_encoder=_gemma2(4),
        tokenizer=_gemma_tokenizer(),
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "sd1": sd1,
    "sd2": sd2,
    "sdxl": sdxl,
    "sd3": sd3,
    "sd3-no-t5": sd3_without_t5,
    "flux": flux,
    "flux-schnell": flux_schnell,
    "z-image": z_image,
    "qwen-image": qwen_image,
    "flux2-klein": flux2_klein,
    "flux2-klein-base": flux2_klein_base,
    "chroma": chroma,
    "sana": sana,
    "sana-sprint": sana_sprint,
    "sd3.5-medium": sd35_medium,
}


def saved(family: str, folder: Path) -> Path:
    """The family's pipeline in ``folder``."""
    with quiet():
        FAMILIES[family]().save_pretrained(folder)
    return folder


def adapter(family: str, path: Path, rank: int = 4, size: float = 0.1) -> Path:
    """A PEFT file of random factors for every attention and feed-forward layer of the family's denoiser."""
    with quiet():
        pipe = FAMILIES[family]()
    name = "unet" if hasattr(pipe, "unet") else "transformer"
    draws, tensors = torch.Generator().manual_seed(5), {}
    for layer, module in getattr(pipe, name).named_modules():
        if isinstance(module, torch.nn.Linear) and any(
            part in layer for part in (".attn", ".ff", ".attention", ".feed_forward", "_mlp")
        ):
            outputs, inputs = module.weight.shape
            tensors[f"{name}.{layer}.lora_A.weight"] = torch.randn(rank, inputs, generator=draws) / inputs**0.5
            tensors[f"{name}.{layer}.lora_B.weight"] = torch.randn(outputs, rank, generator=draws) * size
    save_file(tensors, path)
    return path
