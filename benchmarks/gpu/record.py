"""The report of a GPU: one JSON file of sections, each written as soon as its part is done."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchError

SCHEMA = "chorale-gpu-bench/1"


def report_name(device: str, shape: str) -> str:
    """File name for a device, "NVIDIA H100 80GB HBM3" or "cpu", and a set of shapes."""
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return f"gpu-{slug}.json" if shape == "real" else f"gpu-{slug}-{shape}.json"


class Record:
    """Sections by part. `setting` is what all of them have in common.

    A section holds "state" ("done" or "failed"), what was measured or why not, and by what.
    """

    def __init__(self, path: Path, setting: dict[str, Any], *, fresh: bool = False) -> None:
        """Goes on with the report at `path`, unless `fresh`.

        Raises: BenchError when the file there is none of this schema and setting.
        """
        self.path = path
        self.setting = setting
        self.sections: dict[str, dict[str, Any]] = {}
        self.skipped: dict[str, str] = {}
        self.must_hold: list[dict[str, Any]] = []
        if not fresh and path.exists():
            self.sections = self._read()

    def is_done(self, part: str) -> bool:
        return self.sections.get(part, {}).get("state") == "done"

    def result(self, part: str) -> dict[str, Any] | None:
        """What a part measured; None unless it is done."""
        return self.sections[part]["result"] if self.is_done(part) else None

    def put(self, part: str, section: dict[str, Any]) -> None:
        """Keeps a section and writes the file, whole or not at all."""
        self.sections[part] = section
        self.skipped.pop(part, None)
        self.write()

    def skip(self, part: str, reason: str) -> None:
        """An older section of the part stays."""
        self.skipped[part] = reason

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        report = {
            "schema": SCHEMA,
            **self.setting,
            "sections": self.sections,
            "skipped": self.skipped,
            "must_hold": self.must_hold,
        }
        with tempfile.NamedTemporaryFile(
            "w", dir=self.path.parent, prefix=self.path.name, suffix=".part", delete=False
        ) as file:
            json.dump(report, file, indent=1)
            file.write("\n")
        os.chmod(file.name, 0o644)
        os.replace(file.name, self.path)

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            report = json.loads(self.path.read_bytes())
            found = {"schema": report["schema"], **{key: report[key] for key in self.setting}}
            sections = report["sections"]
        except (ValueError, KeyError, TypeError) as error:
            raise self._unusable(f"it cannot be read ({type(error).__name__})") from None
        wanted = {"schema": SCHEMA, **self.setting}
        for key, value in wanted.items():
            if found[key] != value:
                raise self._unusable(f"its {key} is {found[key]!r}, now it is {value!r}")
        return sections

    def _unusable(self, why: str) -> BenchError:
        return BenchError(
            "REPORT_UNUSABLE",
            f"{self.path} cannot be gone on with: {why}; give --fresh to begin anew",
            metadata={"path": str(self.path)},
        )
