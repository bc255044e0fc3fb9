"""What a check is asked to do, as values: arms, orders, schemes, targets, probes, recipes, limits."""
