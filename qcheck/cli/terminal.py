"""The terminal, which shows text of files as text: control sequences in it change nothing."""

from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.segment import Segment

from qcheck.device.text import visible


def console(**options: Any) -> Console:
    """A console of rich, with its options, whose own sequences are the only ones that arrive."""
    shown = Console(**options)
    shown.push_render_hook(_Visible())
    return shown


class _Visible(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """As rich asks: what is to be printed, and what to print for it."""
        return [_Shown(one) for one in renderables]


class _Shown:
    def __init__(self, renderable: ConsoleRenderable) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        rendered: Iterable[Segment] = console.render(self._renderable, options)
        for segment in rendered:
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
