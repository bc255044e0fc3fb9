"""Calibration of an adapter by QAT: the student, its objective, and the training loop."""
