"""The request of a check as values: arms, orders, schemes, targets, probes, recipes, limits."""
