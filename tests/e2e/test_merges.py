"""Merged adapters from the command line to the answer, and through a data plane's death."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import httpx
import peft
import pytest
import torch
import transformers

import chorale
from tests.e2e.conftest import ADAPTERS, ROOT, expected
from tests.helpers.up import ChoraleUp
from tests.helpers.up import chorale as command
from tests.helpers.waiting import until

PROMPTS = ["407 =", "85 =", "9 =", "630 ="]
MODEL = ROOT / "examples" / "demo" / "model"
NEW_TOKENS = 24
MERGE = "e2e-merge"
MAX_LOGIT_ERROR = 0.15


@pytest.fixture
def merged(client: chorale.Client) -> Iterator[None]:
    """What a test merges goes with it."""
    yield
    client.adapters.remove(MERGE)


def merge(up: ChoraleUp, *arguments: str) -> None:
    done = command("adapters", "merge", MERGE, *arguments, "--address", up.grpc_address)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("merged")
def test_it_is_an_adapter_like_any_other(up: ChoraleUp, client: chorale.Client) -> None:
    merge(up, "french=1")
    assert client.complete("407 =", model=MERGE).text.strip() == expected("french", 407)
    merge(up, "roman=1", "french=1e-6")
    assert client.complete("407 =", model=MERGE).text.strip() == expected("roman", 407)
    assert client.complete("407 =", model=f"{MERGE}@1").text.strip() == expected("french", 407)
    client.adapters.rollback(MERGE)
    with httpx.Client(base_url=f"http://{up.http_address}", timeout=60) as http:
        body = {"inputs": "407 =", "parameters": {"adapter_id": MERGE, "max_new_tokens": 80}}
        said = http.post("/generate", json=body).json()["generated_text"]
        assert said.strip() == expected("french", 407)
        body["parameters"] = {"merged_adapters": {"ids": ["french"], "weights": [1]}}
        refused = http.post("/generate", json=body)
        assert refused.status_code in (400, 422) and "adapters merge" in refused.text
    rows = {"model": MERGE, "version": "2", "outcome": "ok"}
    until(lambda: up.metrics()("chorale_gateway_model_requests_total", rows))
    assert up.metrics()("chorale_gateway_model_requests_total", rows) == 1


@pytest.mark.usefixtures("merged")
@pytest.mark.parametrize(
    ("strategy", "weights", "options"),
    [  # peft gives the merge the first one's layers, so that has all
        ("cat", {"french": 0.8, "roman": 0.6, "german": -0.3}, {}),
        ("linear", {"spanish": 0.7, "morse": 0.9}, {}),
        ("ties", {"spanish": 0.5, "morse": 1.0}, {"density": 0.6}),
    ],
)
def test_answers_are_those_of_peft(
    client: chorale.Client, strategy: str, weights: dict[str, float], options: dict[str, float]
) -> None:
    client.adapters.merge(MERGE, weights, strategy=strategy, **options)  # type: ignore[arg-type]
    model = with_peft(weights, strategy, options)
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    for prompt in PROMPTS:
        ids = tokenizer(prompt).input_ids
        answer = client.complete(
            prompt_token_ids=ids,
            model=MERGE,
            max_tokens=NEW_TOKENS,
            ignore_eos=True,
            temperature=0.0,
        )
        tokens = list(answer.token_ids)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*ids, *tokens[:-1]]])).logits[0]
        logits = logits[len(ids) - 1 :]
        said = logits[torch.arange(NEW_TOKENS), torch.tensor(tokens)]
        # The deployment may round to bfloat16; the reference does not.
        assert (logits.max(-1).values - said).max() < MAX_LOGIT_ERROR


def with_peft(
    weights: dict[str, float], strategy: str, options: dict[str, float]
) -> peft.PeftModel:
    base = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    first, *others = weights
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(base, str(ADAPTERS / first), first)
        for name in others:
            model.load_adapter(str(ADAPTERS / name), name)
        model.add_weighted_adapter(  # pyright: ignore[reportCallIssue]
            list(weights), list(weights.values()), "merged", combination_type=strategy, **options
        )
    model.set_adapter("merged")
    return model.eval()


@pytest.mark.slow
def test_it_outlives_its_data_plane(tmp_path: Path) -> None:
    with (
        ChoraleUp(tmp_path / "data", "--adapter-root", str(ADAPTERS)) as own,
        chorale.Client(own.grpc_address) as client,
    ):
        client.adapters.register("reversed", str(ADAPTERS / "reversed"))
        before = client.adapters.merge(MERGE, {"reversed": 1.0}).version
        with pytest.raises(chorale.FailedPreconditionError, match=MERGE):
            client.adapters.remove("reversed")
        assert client.complete("407 =", model=MERGE).text.strip() == expected("reversed", 407)
        [first] = client.data_planes()
        own.part("data-plane-0").kill()
        until(
            lambda: (
                [plane.incarnation for plane in client.data_planes()]
                not in ([], [first.incarnation])
            )
        )
        assert client.complete("407 =", model=MERGE).text.strip() == expected("reversed", 407)
        assert client.adapters.get(MERGE).adapter.versions[0] == before
