"""Costs of the networks: MACs, and the paper's tables of them."""
