"""The pipeline and the adapters that ship with qcheck, and the code that trained them."""
