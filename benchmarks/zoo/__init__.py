"""What becomes of the zoo's adapters when they are quantized, by judges that are no metrics of qcheck."""
