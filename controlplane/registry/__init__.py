"""Adapters, versions, aliases and base models."""
