"""Adapter files: format, identity, sources and the tiers that hold them. Imports no other room."""
