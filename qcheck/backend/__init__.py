"""Who computes a denoiser's output, behind one protocol."""
