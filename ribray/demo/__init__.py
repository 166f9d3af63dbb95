"""The drawn world of the quickstart and its small network, which `tools/pretraining.py` has made."""
