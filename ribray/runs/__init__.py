"""A run directory: its files, their formats, the lock on it, what failed, and the numbers that stages leave."""
