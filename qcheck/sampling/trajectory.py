"""The stored summary of a free run's trajectory: a few scalars of every call, no latents."""

from dataclasses import dataclass, field

import torch


@dataclass
class Trajectory:
    """The scalars of a batch of b free runs, gathered call by call.

    ``turns`` 1 - cosine of the angle between each guided output and the next; ``lengths`` norm of each step's change of
    the latents; ``moments`` mean and variance over the pixels of each channel before every call and at the end.
    """

    turns: list[torch.Tensor] = field(default_factory=list)
    lengths: list[torch.Tensor] = field(default_factory=list)
    moments: list[torch.Tensor] = field(default_factory=list)
    _first: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    _last: torch.Tensor | None = None
    _output: torch.Tensor | None = None

    def add(self, x: torch.Tensor, guided: torch.Tensor) -> None:
        """Latents [b, C, h, w] before a call, and the guided output of that shape that it gave."""
        self._moved(x)
        flat = guided.double().flatten(1)
        if self._output is not None:
            self.turns.append(1 - torch.cosine_similarity(self._output, flat, dim=1))
        self._output = flat

    def _moved(self, x: torch.Tensor) -> None:
        wide = x.double()
        self.moments.append(torch.stack([wide.mean((2, 3)), wide.var((2, 3), correction=0)], 1))
        flat = wide.flatten(1)
        if self._last is None:
            self._first = flat
        else:
            self.lengths.append((flat - self._last).norm(dim=1))
        self._last = flat

    def scalars(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The scalars of runs that end at latents ``x`` [b, C, h, w].

        ``turns`` [b, calls - 1], ``lengths`` [b, calls], ``chord`` [b, 1] from start to end, ``moments``
        [b, calls + 1, 2, C]; all float64.
        """
        self._moved(x)
        nothing = x.new_empty(0, len(x), dtype=torch.float64)
        return {
            "turns": (torch.stack(self.turns) if self.turns else nothing).T,
            "lengths": (torch.stack(self.lengths) if self.lengths else nothing).T,
            "chord": (x.double().flatten(1) - self._first).norm(dim=1, keepdim=True),
            "moments": torch.stack(self.moments, 1),
        }
