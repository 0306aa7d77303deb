from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dataplane.errors import ModelNotFoundError
from dataplane.models.locate import locate_model


def snapshot(monkeypatch: pytest.MonkeyPatch, result: Path | Exception) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def download(repo_id: str, **options: Any) -> str:
        calls.append({"repo_id": repo_id, **options})
        if isinstance(result, Exception):
            raise result
        return str(result)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return calls


def test_a_directory_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    assert locate_model(str(model)) == model.resolve()
    monkeypatch.chdir(tmp_path)
    assert locate_model("model") == model.resolve()


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("{tmp}", "MODEL_DIR_INVALID"),
        ("{tmp}/missing", "MODEL_NOT_FOUND"),
        ("./missing", "MODEL_NOT_FOUND"),
        ("a/b/c", "MODEL_NOT_FOUND"),
        ("not a repo id!", "MODEL_NOT_FOUND"),
    ],
)
def test_what_is_no_model_is_told_without_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, reason: str
) -> None:
    from huggingface_hub.errors import HFValidationError

    calls = snapshot(monkeypatch, HFValidationError("bad id"))
    with pytest.raises(ModelNotFoundError) as raised:
        locate_model(argument.format(tmp=tmp_path))
    assert raised.value.reason == reason
    assert calls == [] or argument == "not a repo id!"


def test_a_hub_id_fetches_no_pickles_and_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import filter_repo_objects

    (tmp_path / "config.json").write_text("{}")
    calls = snapshot(monkeypatch, tmp_path)
    assert locate_model("owner/name@v2") == tmp_path
    (call,) = calls
    assert (call["repo_id"], call["revision"]) == ("owner/name", "v2")
    wanted = [
        "model-00001-of-2.safetensors",
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
    ]
    unwanted = ["pytorch_model.bin", "x.pt", "model.pth", "modeling.py", "a.pkl", "README.md"]
    unwanted += ["consolidated.safetensors", "consolidated-00001-of-00002.safetensors"]
    patterns = {name: call[name] for name in ("allow_patterns", "ignore_patterns")}
    kept = filter_repo_objects([*wanted, *unwanted], **patterns)
    assert list(kept) == wanted


def test_hub_failures_are_typed_and_short(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot(monkeypatch, ConnectionError("no route " * 500))
    with pytest.raises(ModelNotFoundError) as raised:
        locate_model("owner/name")
    assert raised.value.reason == "MODEL_NOT_AVAILABLE" and len(raised.value.message) < 400
