"""Costs of the networks: MACs, and the paper's tables of them (``atmnet.costs.paper``)."""

from .counting import detector_macs, macs

__all__ = ["detector_macs", "macs"]
