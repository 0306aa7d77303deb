"""An activated LoRA from its files to its answers, beside a conversation with the base model."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import httpx
import peft
import pytest
import torch
import transformers

import chorale
from tests.e2e.conftest import ADAPTERS, BASE, ROOT
from tests.helpers.up import ChoraleUp
from tests.helpers.up import chorale as command

MODEL = ROOT / "examples" / "demo" / "model"
NAME = "e2e-activated"
NEW_TOKENS = 16
MAX_LOGIT_ERROR = 0.15
TALK = "".join(f"{number} = {number + 1}; " for number in range(100, 130))
ASKED = TALK + "407 ="


@pytest.fixture
def activated(up: ChoraleUp, client: chorale.Client, adapter_root: Path) -> Iterator[Path]:
    """The French voice, from the last "=" of a prompt on."""
    path = adapter_root / NAME
    shutil.copytree(ADAPTERS / "french", path)
    config = json.loads((path / "adapter_config.json").read_text())
    config["alora_invocation_tokens"] = [client.tokenize("407 =")[-1].token_id]
    (path / "adapter_config.json").write_text(json.dumps(config))
    added = command("adapters", "add", NAME, str(path), "--address", up.grpc_address)
    assert added.returncode == 0, added.stderr
    yield path
    client.adapters.remove(NAME)
    shutil.rmtree(path)


def test_its_answers_are_those_of_peft(client: chorale.Client, activated: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        model = peft.PeftModel.from_pretrained(base, str(activated)).eval()
    ids = [each.token_id for each in client.tokenize(ASKED)]
    answer = client.complete(
        prompt_token_ids=ids, model=NAME, max_tokens=NEW_TOKENS, ignore_eos=True, temperature=0.0
    )
    tokens = list(answer.token_ids)
    with torch.no_grad():
        offset = {"alora_offsets": [NEW_TOKENS]}  # the prompt's last token, and what came of it
        logits = model(input_ids=torch.tensor([[*ids, *tokens[:-1]]]), **offset).logits[0]
        with model.disable_adapter():
            unlike = model(input_ids=torch.tensor([[*ids, *tokens[:-1]]])).logits[0]
    logits, unlike = logits[len(ids) - 1 :], unlike[len(ids) - 1 :]
    said = logits[torch.arange(NEW_TOKENS), torch.tensor(tokens)]
    assert (logits.max(-1).values - said).max() < MAX_LOGIT_ERROR
    said = unlike[torch.arange(NEW_TOKENS), torch.tensor(tokens)]
    assert (unlike.max(-1).values - said).max() > 3 * MAX_LOGIT_ERROR, "the base says otherwise"


@pytest.mark.usefixtures("activated")
def test_it_begins_where_the_base_model_has_computed(up: ChoraleUp, client: chorale.Client) -> None:
    talk = f"Of another. {TALK}"
    asked = client.complete(f"{talk}407 =", model=BASE, max_tokens=4, temperature=0.0)
    assert asked.finished.num_cached_tokens == 0
    greedy = {"max_tokens": 40, "temperature": 0.0}
    answer = client.complete(f"{talk}407 =", model=NAME, **greedy)
    # All whole blocks of 16 tokens but the one that has the invocation.
    num_before = asked.finished.num_prompt_tokens - 1
    assert answer.finished.num_cached_tokens == num_before // 16 * 16 > 100
    assert answer.text != asked.text
    begun = answer.token_ids[:9]
    rest = client.complete(f"{talk}407 =", model=NAME, generated_token_ids=begun, **greedy)
    assert rest.token_ids == answer.token_ids[9:]
    with httpx.Client(base_url=f"http://{up.http_address}", timeout=60) as http:
        body = {"model": NAME, "prompt": f"{talk}407 =", **greedy}
        done = http.post("/v1/completions", json=body).json()
        assert done["choices"][0]["text"] == answer.text
        refused = http.post("/v1/completions", json=body | {"prompt": "hello"})
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["code"] == "invocation_missing" and "' ='" in error["message"]


@pytest.mark.usefixtures("activated")
def test_it_is_shown_and_not_merged(up: ChoraleUp) -> None:
    shown = command("adapters", "show", NAME, "--address", up.grpc_address)
    assert "activated" in shown.stdout
    arguments = ("adapters", "merge", "e2e-merge", f"{NAME}=1", "roman=1")
    merged = command(*arguments, "--address", up.grpc_address)
    assert merged.returncode != 0
    assert "MERGE_REFUSED" in merged.stderr and "activated LoRA" in merged.stderr
