"""A size as people read it: everything that names the size of a file says the same."""


def megabytes(size: float) -> str:
    """``size`` bytes as text: 10^6 bytes to the megabyte, one decimal, as in "8.2 MB" and "1,336.0 MB"."""
    return f"{size / 1e6:,.1f} MB"
