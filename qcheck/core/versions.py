"""The libraries that a check computes with."""

from importlib import metadata

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "onnx",
    "onnx-ir",
    "onnxruntime-gpu",
    "onnxruntime",
    "tensorrt",
    "tensorrt-rtx",
    "nvidia-modelopt",
    "bitsandbytes",
    "onnxscript",
    "ml-dtypes",
    "tokenizers",
    "safetensors",
    "numpy",
    "scipy",
    "scikit-image",
    "scikit-learn",
)


def versions() -> dict[str, str]:
    """The installed versions of what a check computes with."""
    installed = {dist.metadata["Name"].lower().replace("_", "-"): dist.version for dist in metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}
