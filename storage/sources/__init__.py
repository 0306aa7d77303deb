"""Where adapters come from."""

from storage.files import AdapterFiles
from storage.sources.access import ANYBODY, Access, Progress
from storage.sources.build import SourceOptions, build_router
from storage.sources.local import LocalDirectorySource
from storage.sources.slots import OriginSlots
from storage.sources.source import Source, SourceRouter

__all__ = [
    "ANYBODY",
    "Access",
    "AdapterFiles",
    "LocalDirectorySource",
    "OriginSlots",
    "Progress",
    "Source",
    "SourceOptions",
    "SourceRouter",
    "build_router",
]
