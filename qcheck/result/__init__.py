"""The results of a check as values: measurements, builds, the report, and reading it back."""
