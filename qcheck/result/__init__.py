"""What a check found, as values: measurements, builds, the report, and reading it back."""
