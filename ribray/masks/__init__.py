"""Masks made from localization maps."""
