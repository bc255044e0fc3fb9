"""Sampling of probes with a runner: the solver, the runs, and their stored outputs."""
