"""Runners: they compute a call of the denoiser."""
