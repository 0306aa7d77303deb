"""Where the demo model and its adapters lie: in the repository, or inside the installed package."""

from __future__ import annotations

from pathlib import Path

from controlplane.cli.errors import NoSuchFileError

MODEL_NAME = "chorale-demo"
_ROOT = Path(__file__).parents[3]
_PLACES = (_ROOT / "examples" / "demo", _ROOT / "storage" / "demo_assets")


def find() -> Path | None:
    """The directory that holds `model/` and `adapters/`; None when neither place has them."""
    for place in _PLACES:
        if (place / "model" / "config.json").is_file():
            return place
    return None


def model_dir() -> Path:
    """Raises: NoSuchFileError when the demo model is not there."""
    place = find()
    if place is None:
        raise NoSuchFileError(
            "DEMO_MODEL_MISSING",
            "the demo model does not come with this installation; name a model with --model",
        )
    return place / "model"
