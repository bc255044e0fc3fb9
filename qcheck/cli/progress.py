"""Progress bars on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from qcheck.device.text import visible


class Bars:
    """A line for each stage: title, bar, count, elapsed and remaining time; without a terminal only when it ends."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def note(self, text: str) -> None:
        """As ``progress.Progress.note``."""
        self._console.print(Text(text), soft_wrap=True)

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """As ``progress.Progress.stage``; of a stage without units there is nothing to show."""
        if not total:
            yield lambda units: None
            return
        columns = (
            TextColumn("{task.description:<30}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console) as bars:
            task = bars.add_task(visible(title), total=total)
            yield lambda units: bars.advance(task, units)
