"""A checkpoint of a training run as a line of text."""

from rich.text import Text

from qcheck.core.errors import listed
from qcheck.report.wording import line as one_line
from qcheck.result.watching import Checkpoint, Unit
from qcheck.spec.growth import State

PAGE = "watch.html"
COLOURS: dict[State, str] = {"healthy": "green", "faint": "yellow", "overcooked": "bold red", "unread": "bold red"}


def title(checkpoint: Checkpoint, unit: Unit) -> str:
    """Which checkpoint it is: "step 250", or "last" for what training ended with."""
    return "last" if checkpoint.number is None else f"{unit} {checkpoint.number}"


def numbers(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Change, intruders, gradient's norm, KL from the base and in how many forecasts it arrives, and in which not."""
    lost = [f"{one.scheme} {one.order}" for one in checkpoint.forecasts if one.fate != "arrives"]
    arriving = f"{len(checkpoint.forecasts) - len(lost)} of {len(checkpoint.forecasts)}"
    return (
        f"{checkpoint.change:.3g}",
        "-" if checkpoint.intruders is None else f"{checkpoint.intruders:.2f}",
        "-" if checkpoint.gradient is None else f"{checkpoint.gradient:.3g}",
        "-" if checkpoint.kl is None else f"{checkpoint.kl:.3g}",
        arriving + (f", not {listed(lost)}" if lost else ""),
    )


def line(checkpoint: Checkpoint, unit: Unit) -> Text:
    """State, numbers, and the first reason where it is not healthy."""
    text = Text(f"{title(checkpoint, unit):>12}  ")
    text.append(f"{checkpoint.state:10}", COLOURS[checkpoint.state])
    if checkpoint.state != "unread":
        change, intruders, gradient, kl, arriving = numbers(checkpoint)
        text.append(f"  change {change}  intruders {intruders}  gradient {gradient}")
        text.append(("" if checkpoint.kl is None else f"  kl {kl}") + f"  arrives in {arriving}")
    if checkpoint.reasons:
        more = len(checkpoint.reasons) - 1
        text.append(f"  {one_line(checkpoint.reasons[0])}" + (f" (and {more} more)" if more else ""))
    return text
