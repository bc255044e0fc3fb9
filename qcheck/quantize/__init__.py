"""Number formats, their simulation, the ranges they need and the Q/DQ artifact: one numeric core for all."""
