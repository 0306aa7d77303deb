"""From a model argument to a local directory."""

from __future__ import annotations

import logging
from pathlib import Path

from dataplane.errors import ModelNotFoundError

log = logging.getLogger(__name__)

# Weights and what describes them; never *.bin, *.pt or *.pth, which are pickles, and never code.
_ALLOWED_FILES = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
)
# The same weights once more, as Mistral's own programs read them.
_IGNORED_FILES = ("consolidated*.safetensors",)
_MAX_SHOWN = 200


def locate_model(model: str) -> Path:
    """The directory that holds the base model. Blocks; a hub id may mean a long download.

    model: an existing directory, or a Hugging Face hub id as "owner/name" (optionally
    "owner/name@revision"), which is looked up in the local cache first when the hub cannot be
    reached.
    Raises: ModelNotFoundError when it is neither, or the hub does not give it.
    """
    path = Path(model).expanduser()
    shown = model[:_MAX_SHOWN]
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelNotFoundError(
                "MODEL_DIR_INVALID",
                f"model: {shown} has no config.json; give a Hugging Face model directory",
                {"model": shown},
            )
        return path.resolve()
    if path.exists() or path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ModelNotFoundError(
            "MODEL_NOT_FOUND",
            f"model: there is no directory {shown}; give one, or a hub id as owner/name",
            {"model": shown},
        )
    return _download(model, shown)


def _download(model: str, shown: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    repo_id, _, revision = model.partition("@")
    log.info("fetching %s from the model hub unless it is cached", shown)
    try:
        directory = snapshot_download(
            repo_id,
            revision=revision or None,
            allow_patterns=list(_ALLOWED_FILES),
            ignore_patterns=list(_IGNORED_FILES),
        )
    except HFValidationError as error:
        raise ModelNotFoundError(
            "MODEL_NOT_FOUND",
            f"model: {shown} is neither a directory nor a hub id (owner/name)",
            {"model": shown},
        ) from error
    except Exception as error:  # the hub client and the HTTP stack below it
        said = " ".join(str(error).split())[:_MAX_SHOWN]
        raise ModelNotFoundError(
            "MODEL_NOT_AVAILABLE",
            f"model: {shown} is no directory here and the model hub did not give it: {said}",
            {"model": shown, "error": type(error).__name__},
        ) from error
    if not (Path(directory) / "config.json").is_file():
        raise ModelNotFoundError(
            "MODEL_DIR_INVALID",
            f"model: the hub's {shown} has no config.json, so it is no transformers model",
            {"model": shown},
        )
    return Path(directory)
