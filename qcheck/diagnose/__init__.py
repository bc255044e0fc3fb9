"""The contribution of each layer to the error, and the evidence of a report."""
