"""Engines for the target: compiled in a child process, read, and held to what the scheme asked."""
