"""Libraries that talk while they load: silenced in one place, so that a check's own output is what a person sees."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOUD = ("diffusers", "transformers", "torch.onnx", "onnxscript", "huggingface_hub", "peft", "bitsandbytes")

logging.getLogger("bitsandbytes").setLevel(
    logging.ERROR
)  # it warns while peft imports it, of kernels it can do without


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, only errors of the model libraries are logged, and their warnings and progress bars are not shown."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    levels = {name: logging.getLogger(name).level for name in _LOUD}
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
