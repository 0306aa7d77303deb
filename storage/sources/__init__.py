"""Where adapters come from."""

from storage.files import AdapterFiles
from storage.sources.local import LocalDirectorySource
from storage.sources.source import Source, SourceRouter

__all__ = ["AdapterFiles", "LocalDirectorySource", "Source", "SourceRouter"]
