"""ribray: RIB weakly supervised segmentation as a scalable experiment on Ray."""

__version__ = "0.1.0"
