"""What qcheck and its peers cost on one model and the same samples; ``python -m benchmarks.peers`` runs all of them."""
