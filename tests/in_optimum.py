"""Runs in optimum's own virtual environment, never in qcheck's: ``FOLDER OUT.npy SIDE``, in pixels."""

import sys
import warnings

warnings.simplefilter("ignore")

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402
from optimum.onnxruntime import ORTDiffusionPipeline  # noqa: E402

PROMPT, STEPS, GUIDANCE, SEED = "cat face", 8, 3.0, 3


def main() -> None:
    """Sample one picture [1, H, W, 3] with ``ORTDiffusionPipeline``."""
    folder, out, side = sys.argv[1:]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    pipe = ORTDiffusionPipeline.from_pretrained(folder, provider="CPUExecutionProvider", session_options=options)
    generator = torch.Generator().manual_seed(SEED)
    size = {"height": int(side), "width": int(side)}
    found = pipe(
        PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generator, output_type="np", **size
    )
    np.save(out, found.images)


if __name__ == "__main__":
    main()
