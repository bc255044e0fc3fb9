"""One use of an adapter's file."""

from qcheck.core.values import Value


class Use(Value):
    """An adapter's file and the weight it is applied with."""

    source: str
    weight: float
