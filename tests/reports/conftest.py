"""The command line in this process, for data as people bring it."""

from tests.stages.conftest import ribray

__all__ = ["ribray"]
