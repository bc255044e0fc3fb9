"""Calibration of an adapter by training: the student, what it learns from, the loop."""
