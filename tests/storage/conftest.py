from hypothesis import settings

# No example database: tests leave nothing behind.
settings.register_profile("storage", database=None, deadline=None)
settings.load_profile("storage")
