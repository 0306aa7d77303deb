"""Weighted combinations of adapters, which are adapters themselves."""
