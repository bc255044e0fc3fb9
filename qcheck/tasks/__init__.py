"""One story a command."""
