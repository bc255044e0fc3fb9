"""From measurements and limits to a verdict and the next step. It compares; it computes no statistics."""
