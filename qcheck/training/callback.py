"""A callback of transformers' trainers that looks at every checkpoint which they save."""

from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback

from qcheck.result.watching import Checkpoint

_BAD = ("overcooked", "unread")


class Callback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Calls ``look`` after each save; with ``stop`` a checkpoint that is overcooked or holds NaN ends the training."""

    def __init__(self, look: Callable[[], Sequence[Checkpoint]], stop: bool) -> None:
        self._look, self._stop = look, stop

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """As transformers calls it: the checkpoint is on the disk."""
        if any(one.state in _BAD for one in self._look()) and self._stop:
            control.should_training_stop = True
