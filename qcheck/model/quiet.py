"""Silence libraries that log while they load, so that the user reads only the output of the check."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LIBRARIES = ("diffusers", "transformers", "torch.onnx", "onnxscript", "huggingface_hub", "peft", "bitsandbytes")

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on import it warns about optional kernels


@contextmanager
def quiet() -> Iterator[None]:
    """Inside the block only errors of the model libraries are logged; warnings and progress bars are not shown."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    levels = {name: logging.getLogger(name).level for name in _LIBRARIES}
    for name in _LIBRARIES:
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
