"""What computes a call of the denoiser."""
