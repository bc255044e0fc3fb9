"""Ranges of the inputs of every layer, and factors that smooth them."""
