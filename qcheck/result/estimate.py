"""What a deployed model needs of a device at least: an estimate from shapes and data sheets, without a run on it."""

from collections.abc import Mapping
from typing import Literal

from qcheck.core.size import megabytes
from qcheck.core.values import Value
from qcheck.spec.target import Target


class Estimate(Value):
    """Memory in MB, time in ms. ``memory_gb`` is the device's; None where it depends on the card.

    ``call_ms`` is a lower bound of one denoiser call at the probes' size and guidance, and ``bound`` what sets it; both
    None, with ``missing`` saying why, where the profile lacks a number.
    """

    denoiser_mb: float
    others_mb: float
    activations_mb: float
    memory_gb: float | None
    call_ms: float | None
    bound: Literal["memory", "compute"] | None
    missing: str = ""

    @property
    def total_mb(self) -> float:
        """Weights of all components, and the activations of the component with the most."""
        return self.denoiser_mb + self.others_mb + self.activations_mb

    @property
    def fits(self) -> bool | None:
        """Whether the total is less than the device's memory; other programs there may still lack memory."""
        return None if self.memory_gb is None else self.total_mb < self.memory_gb * 1e3

    def text(self) -> str:
        """One line for a person."""
        artifact, others, activations, total = (
            megabytes(1e6 * size) for size in (self.denoiser_mb, self.others_mb, self.activations_mb, self.total_mb)
        )
        parts = f"artifact {artifact} + other components {others} + activations {activations} = {total}"
        room = " of device memory" if self.memory_gb is None else f" of its {self.memory_gb:g} GB memory"
        if self.fits is False:
            room += ": does not fit"
        speed = f"no lower bound of its time: {self.missing}"
        if self.call_ms is not None:
            how = "memory-bound" if self.bound == "memory" else "compute-bound, convolutions counted directly"
            speed = f"a denoiser call takes at least {self.call_ms:.3g} ms ({how})"
        return f"{parts}{room}; {speed}"


def estimate(target: Target, denoiser: int, others: int, activations: int, operations: Mapping[str, int]) -> Estimate:
    """From bytes of the denoiser's file, of the other components and of activations, and operations by format.

    Memory is their sum: activations as eager execution holds them, so an engine that fuses needs less, and its runtime
    and workspace more. Time is the roofline's lower bound (Williams, Waterman and Patterson 2009):
    max(denoiser bytes / bandwidth, sum over formats of operations / peak), the weights being read once a call
    and convolutions counted directly (Winograd kernels multiply less).
    """
    memory = target.memory_gb.value if target.memory_gb else None
    peaks = {peak.format: peak.tera_ops for peak in target.peaks}
    lacking = sorted(set(operations) - set(peaks))
    missing = f"{target.title} has no sourced peak for {', '.join(lacking)}" if lacking else ""
    if target.bandwidth_gb_s is None:
        missing = f"bandwidth and speed of {target.title} depend on the card"
    call: float | None = None
    bound: Literal["memory", "compute"] | None = None
    if not missing and target.bandwidth_gb_s is not None:
        read = denoiser / (target.bandwidth_gb_s.value * 1e9)
        computed = sum(count / (peaks[name] * 1e12) for name, count in operations.items())
        call, bound = 1e3 * max(read, computed), "memory" if read >= computed else "compute"
    return Estimate(
        denoiser_mb=denoiser / 1e6,
        others_mb=others / 1e6,
        activations_mb=activations / 1e6,
        memory_gb=memory,
        call_ms=call,
        bound=bound,
        missing=missing,
    )
