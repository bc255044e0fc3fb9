"""Which layers carry the gap, and what a report shows of it."""
