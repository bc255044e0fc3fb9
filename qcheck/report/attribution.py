"""What ``qcheck inspect FILE.onnx`` says of a file and the adapters that may be in it, in a terminal."""

from rich.console import Console
from rich.markup import escape

from qcheck.result.attribution import Attribution, Trace, answer

_COLOURS = {0: "green", 1: "bold red", 3: "yellow"}
_HELD = frozenset({"in", "in part"})
_WORDS = {"in": "holds", "in part": "holds in part", "not in": "does not hold", "undecided": "may hold"}


def show(attribution: Attribution, console: Console) -> None:
    """The answer, and a line for every adapter."""
    colour, held = _COLOURS[answer(attribution)], [one.adapter for one in attribution.adapters if one.presence in _HELD]
    title = f"holds {', '.join(held)}" if held else attribution.answer
    order = f", {_order(attribution)}" if attribution.order is not None else ""
    console.print(f"{escape(attribution.file)}: [{colour}]{escape(title)}[/]{order}")
    console.print(escape(attribution.reason), highlight=False)
    for trace in attribution.adapters:
        console.print(f"  {_WORDS[trace.presence]} {escape(_line(trace))}", highlight=False)
    if attribution.bound:
        console.print(f"  {attribution.bound} layers take an adapter as inputs of the file, which holds none of that")
    others = f", {attribution.unmatched} of its weights are none of the base's" if attribution.unmatched else ""
    console.print(f"{attribution.layers} layers are the base's{others}", highlight=False)


def _order(attribution: Attribution) -> str:
    words = {
        "merge-quantize": "merged, then quantized",
        "quantize-merge": "quantized, then merged",
        "unmerged": "beside the quantized weights",
        "merged": "merged; the layers that tell are not quantized",
    }
    return words[str(attribution.order)]


def _line(trace: Trace) -> str:
    """An adapter's weight, what became of it, and why."""
    text = f"{trace.adapter} at weight {trace.weight:.2f} ± {trace.error:.2f}"
    if trace.arrived is not None and trace.fate is not None:
        text += f", {trace.fate}: {max(trace.arrived, 0):.0%} of its change"
    if trace.elsewhere:
        text += f"; {trace.elsewhere} of its layers are not in this file"
    return f"{text} ({trace.reason})"
