"""qcheck: will this LoRA survive the edge?"""

__version__ = "0.1.0"
