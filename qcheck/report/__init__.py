"""The report as a frozen value, and its renderings as pure functions of it."""
