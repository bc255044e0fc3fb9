"""Engines for the target: compiled in a child process, read, and compared with the scheme."""
