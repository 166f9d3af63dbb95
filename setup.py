"""The packages: ribray's rooms, and the studies, which lie at the top of a checkout; all else is in pyproject.toml."""

from setuptools import find_namespace_packages, setup

rooms = find_namespace_packages(include=["ribray*"], exclude=["*.__pycache__*"])
setup(packages=[*rooms, "ribray.sweeps"], package_dir={"ribray.sweeps": "sweeps"})
