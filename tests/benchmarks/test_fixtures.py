from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.cases import Setup, closed, idle, many, overlap, ranks
from benchmarks.errors import BenchError
from benchmarks.fixtures import main as fixtures_main
from benchmarks.fixtures import write_fixtures
from benchmarks.models import ALL_LINEAR, ATTENTION, SHAPES
from benchmarks.peft_model import Peft, peft_process
from benchmarks.session import adapter_at
from benchmarks.tokenizer import byte_tokenizer
from storage.adapter.manifest import parse_adapter
from tests.helpers.up import ROOT, chorale_environment

TINY = SHAPES["tiny"]


def setup(folder: Path, **changes: object) -> Setup:
    values: dict[str, object] = {
        "folder": folder,
        "shape_name": "tiny",
        "concurrency": 4,
        "rank": 4,
        "prompt_tokens": 12,
        "new_tokens": 4,
        "rounds": 2,
        "num_idle": 10,
        "device": "cpu",
        "dtype": "float32",
        "num_threads": 1,
    }
    return Setup(**(values | changes))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("text", ["hello, world", "größe 你好 👩‍👩‍👧", "\x00\n\t <s> tool"])
def test_the_tokenizer_gives_every_text_back(text: str) -> None:
    tokenizer = byte_tokenizer(300)
    assert tokenizer.get_vocab_size() == 300
    encoded = tokenizer.encode(text, add_special_tokens=False)
    if "<s>" not in text:
        assert len(encoded.ids) == len(text.encode())
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text
    assert tokenizer.encode(text).ids[0] == 1


def test_every_id_has_a_text() -> None:
    tokenizer = byte_tokenizer(300)
    assert all(tokenizer.decode([token]) for token in range(3, 300))


def test_transformers_and_peft_load_the_fixtures(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    fixtures = write_fixtures(tmp_path, TINY, num_adapters=2, ranks=(4, 8), targets=ATTENTION)
    model = AutoModelForCausalLM.from_pretrained(fixtures.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(fixtures.model)
    assert tokenizer("ab", add_special_tokens=False).input_ids and tokenizer.eos_token_id == 2
    ids = torch.tensor([[20, 21, 22, 23]])
    with torch.inference_mode():  # peft warns of keys that it does not find: an error here
        base = model(ids).logits
        wrapped = PeftModel.from_pretrained(model, str(fixtures.adapters[1]))
        assert not torch.allclose(wrapped(ids).logits, base)
    assert wrapped.peft_config["default"].r == 8
    found = sum("lora_A" in name for name, _ in wrapped.named_parameters())
    assert found == TINY.num_layers * len(ATTENTION)


def test_bytes_of_a_shape_are_those_of_its_files(tmp_path: Path) -> None:
    fixtures = write_fixtures(tmp_path, TINY, num_adapters=1, ranks=(8,), targets=ALL_LINEAR)
    weights = (fixtures.model / "model.safetensors").stat().st_size
    embedding, norms = 2 * TINY.vocab_size * TINY.hidden_size, 2 * TINY.hidden_size * 9
    assert 0 <= weights - (TINY.base_bytes + embedding + norms) < 8192
    (adapter,) = fixtures.adapters
    size = (adapter / "adapter_model.safetensors").stat().st_size
    assert 0 <= size - TINY.adapter_bytes(8) < 16384
    parsed = parse_adapter(
        (adapter / "adapter_config.json").read_bytes(),
        (adapter / "adapter_model.safetensors").read_bytes(),
    )
    assert len(parsed.manifest.modules) == 7 * TINY.num_layers


def test_the_command_writes_what_servers_take(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.fixtures", "--shape=tiny", "--adapters=3"]
    command += ["--rank", "4", "8", f"--out={tmp_path / 'made'}"]
    made = subprocess.run(
        command, cwd=ROOT, env=chorale_environment(), capture_output=True, text=True, check=True
    )
    assert made.stdout.startswith("chorale up --model ")
    configs = sorted((tmp_path / "made" / "adapters").glob("*/adapter_config.json"))
    assert [json.loads(path.read_text())["r"] for path in configs] == [4, 8, 4]


def test_the_command_refuses_a_directory_that_holds_fixtures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(sys, "argv", ["fixtures", f"--out={tmp_path}"])
    with pytest.raises(SystemExit) as caught:
        fixtures_main()
    assert caught.value.code == 2
    assert "holds fixtures already" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_the_closed_case_measures_and_proves_the_pool(tmp_path: Path) -> None:
    result = closed(setup(tmp_path))
    assert set(result.rates) == {"base only", "4 adapters"}  # four streams: the same four
    report = result.report()
    assert all(rate > 0 for rates in report["output_tokens_per_s"].values() for rate in rates)
    assert all(len(rates) == 2 for rates in report["output_tokens_per_s"].values())
    for shares in report["device_idle_share"].values():
        assert all(0 < share < 1 for share in shares)
    roofline = report["byte_roofline_share_of_base_only"]
    assert roofline == pytest.approx(1 / (1 + 4 * TINY.adapter_bytes(4) / TINY.base_bytes))
    by_name = {line["name"]: line for line in report["ratios"]}
    scaled = by_name[f"4 adapters to the byte roofline {roofline:.2f}"]
    plain = by_name["4 adapters to base only"]
    assert scaled["median"] == pytest.approx(plain["median"] / roofline)
    json.dumps(report)


def test_overlapped_steps_are_compared_with_one_after_another(tmp_path: Path) -> None:
    report = overlap(setup(tmp_path, rounds=1)).report()
    rates, idle = report["output_tokens_per_s"], report["device_idle_share"]
    assert set(rates) == set(idle) == {"overlapped", "one after another"}
    (line,) = report["ratios"]
    assert line["median"] == pytest.approx(rates["overlapped"][0] / rates["one after another"][0])
    assert idle["one after another"][0] > 0


def test_mixed_ranks_are_compared_with_as_much_rank_spread_evenly(tmp_path: Path) -> None:
    report = ranks(setup(tmp_path, rounds=1)).report()
    assert (report["mixed_ranks"], report["even_rank"]) == ([8, 16, 32, 64], 30)
    (line,) = report["ratios"]
    rates = report["output_tokens_per_s"]
    expected = rates["rank 30 each"][0] / rates["ranks mixed"][0]
    assert line["median"] == pytest.approx(expected) and line["at_most"] == 1.1


def test_idle_adapters_have_passed_through_the_crowded_engine(tmp_path: Path) -> None:
    report = idle(setup(tmp_path, rounds=1)).report()
    known = sum(report[f"num_idle_{place}"] for place in ("in_pool", "in_host", "on_disk"))
    assert known == 10
    assert set(report["output_tokens_per_s"]) == {"alone", "beside 10 idle"}


def test_many_adapters_are_each_used_before_they_are_measured(tmp_path: Path) -> None:
    result = many(setup(tmp_path, rounds=1, num_idle=6))
    report = result.report()
    assert sum(report[f"num_{place}"] for place in ("in_pool", "in_host", "on_disk")) == 6
    seconds = report["mean_latency_s"]
    (line,) = report["ratios"]
    assert line["median"] == pytest.approx(
        seconds["6 adapters in turn"][0] / seconds["1 adapter"][0]
    )
    assert line["at_most"] == 1.05


def test_peft_serves_the_same_fixtures(tmp_path: Path) -> None:
    fixtures = write_fixtures(tmp_path, TINY, num_adapters=2, ranks=(4,))
    adapters = [adapter_at(path) for path in fixtures.adapters]
    made: dict[str, Any] = {"dtype": torch.float32, "vocab_size": TINY.vocab_size}
    peft = Peft(fixtures.model, adapters, **made)
    names = [adapter.name for adapter in adapters]
    # Each of them checks that it made exactly the tokens that were asked for.
    peft.base(2, 6, 3)
    peft.mixed(names, 6, 3)
    peft.switching(names, 6, 3)
    with peft_process(fixtures.model, adapters, **made) as elsewhere:
        assert min(elsewhere.base(2, 6, 3), elsewhere.switching(names, 6, 3)) > 0
        assert elsewhere.mixed(names, 6, 3) > 0
        with pytest.raises(BenchError) as failed:
            elsewhere.switching(["nobody"], 6, 3)
    assert failed.value.reason == "PEER_FAILED"


def test_a_step_reads_the_experts_that_its_tokens_choose() -> None:
    dense = SHAPES["small"]
    assert dense.step_bytes(1) == dense.step_bytes(64) == dense.base_bytes
    shape = SHAPES["small-moe"]
    layer = sum(i * o for i, o in shape.projections().values()) + 16 * 768
    rest = 2 * (12 * layer + 8192 * 768)
    expert = 2 * 12 * 3 * 768 * 512
    assert shape.step_bytes(1) == rest + 2 * expert  # top_k
    two = 16 * (1 - (14 / 16) ** 2)  # 3.75: some are chosen by both
    assert shape.step_bytes(2) == rest + int(two * expert)
    assert rest + 15.9 * expert < shape.step_bytes(64) < rest + 16 * expert
    assert set(shape.projections()) == {f"self_attn.{each}" for each in ATTENTION}
