"""The arms of a check: the base, the base with the adapter, and the comparison of both."""

from typing import Literal

Side = Literal["base", "adapted"]
SIDES: tuple[Side, Side] = ("base", "adapted")
Arm = Literal["base", "adapted", "both"]
