"""One module for each command: the task that it carries out."""
