"""The Python API: what the command line does, as functions and one class; ``qcheck`` itself hands their names on."""
