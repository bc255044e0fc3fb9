"""Probes through a runner: the solver, the runs, and what is kept of them."""
