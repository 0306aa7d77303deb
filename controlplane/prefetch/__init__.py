"""Prefetch predictions: demand counted in Redis, directives to data planes, and their score."""
