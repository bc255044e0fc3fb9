"""What is asked of a bundle."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Content:
    """What is asked of a bundle: its probes (None: as many as the verdict takes), and what lies beside the denoiser.

    ``base_arm`` adds the quantized base, which is otherwise the host's; ``twin`` the denoiser in 16 bit, to be timed.
    """

    probes: int | None = None
    base_arm: bool = False
    twin: bool = True
