"""Probes as workflows of ComfyUI, in the form that its server takes: the body of a POST to ``/prompt``."""

from typing import Any

from qcheck.spec.probe import Probe

SIDE = 512  # pixels, where a probe leaves the size to the pipeline
Node = dict[str, Any]


def body(probe: Probe, checkpoint: str, lora: str | None, weight: float = 1.0) -> dict[str, dict[str, Node]]:
    """A probe on a checkpoint, with a LoRA or without: text to picture with the euler sampler.

    ComfyUI writes the workflow into each picture, by which ``qcheck pictures --match metadata`` knows it again.
    """
    model, words = ["checkpoint", 0], ["checkpoint", 1]
    nodes = {"checkpoint": _node("CheckpointLoaderSimple", ckpt_name=checkpoint)}
    if lora is not None:
        nodes["lora"] = _node(
            "LoraLoader", model=model, clip=words, lora_name=lora, strength_model=weight, strength_clip=weight
        )
        model, words = ["lora", 0], ["lora", 1]
    return {
        "prompt": nodes
        | {
            "positive": _node("CLIPTextEncode", clip=words, text=probe.prompt),
            "negative": _node("CLIPTextEncode", clip=words, text=probe.negative),
            "latent": _node("EmptyLatentImage", width=probe.width or SIDE, height=probe.height or SIDE, batch_size=1),
            "sampler": _node(
                "KSampler",
                model=model,
                positive=["positive", 0],
                negative=["negative", 0],
                latent_image=["latent", 0],
                seed=probe.seed,
                steps=probe.steps,
                cfg=probe.guidance,
                sampler_name="euler",
                scheduler="normal",
                denoise=1.0,
            ),
            "decoder": _node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2]),
            "picture": _node("SaveImage", images=["decoder", 0], filename_prefix=f"{lora or 'base'}/{probe.seed}"),
        }
    }


def _node(kind: str, **inputs: Any) -> Node:
    return {"class_type": kind, "inputs": inputs}
