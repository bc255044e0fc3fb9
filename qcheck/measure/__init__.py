"""Measurements on traces: value, unit, interval, where. They know no limits and no model."""
