"""The command line in this process, for data as people bring it."""

from tests.made import ribray

__all__ = ["ribray"]
