"""Renderings of reports. FOLDER is the output folder of a real check, kept small; see its README."""

from pathlib import Path

FOLDER = Path(__file__).parent / "folder"
