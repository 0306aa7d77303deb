"""All that the host does for a GPU, with a stand-in for one: see tests/helpers/gpu_stand_in.py."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models

from dataplane.channel import Vocabulary
from dataplane.engine.device import CudaDevice
from dataplane.engine.graph_buckets import GraphBuckets
from dataplane.lora.copier import CudaCopy
from kernels.gpu.side_stream import SideStream
from kernels.lora.plan import PageRun
from kernels.quantized.matrix import QuantizedMatrix
from tests.helpers.constraints import grammar
from tests.helpers.drafting import force_drafts
from tests.helpers.engine import Rig
from tests.helpers.gpu_stand_in import StandInGpu, pretend
from tests.helpers.graphs import Recorder
from tests.helpers.models import TARGETS, TARGETS_OF, add_adapter, make_model, save_model
from tests.helpers.quantized import quantized_model

SHAPE = {"num_hidden_layers": 2, "hidden_size": 32, "vocab_size": 48}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENIZER = Tokenizer(
    models.BPE({n: i for i, n in enumerate(["<p>", "<s>", "</s>", *LETTERS])}, [])
)
TOKENIZER.decoder = decoders.ByteLevel()
VOCABULARY = Vocabulary(
    tokenizer=TOKENIZER.to_str().encode(),
    num_tokens=3 + len(LETTERS),
    vocab_size=SHAPE["vocab_size"],
    eos_token_ids=[2],
)
NUM_CONSTRAINED = 2
ADAPTERS = [("all-linear", 8, {}), ("qv", 3, {}), ("with-head", 4, {"use_dora": True})]

EAGER_ALONE = [
    ("qv", 3, {"modules_to_save": ["lm_head"], "trainable_token_indices": [5, 7]}),
    ("qv", 3, {"modules_to_save": ["embed_tokens"], "trainable_token_indices": {"lm_head": [9]}}),
    ("embedding", 5, {}),
]


def count_calls(patch: pytest.MonkeyPatch, owner: type, name: str, calls: dict[str, int]) -> None:
    call = getattr(owner, name)

    def counting(*arguments: Any) -> Any:
        calls[name] += 1
        return call(*arguments)

    patch.setattr(owner, name, counting)


@pytest.mark.parametrize(("architecture", "captured"), [("llama", False), ("phi", True)])
def test_an_engine_on_a_gpu_gives_the_tokens_of_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, captured: bool
) -> None:
    model_dir = save_model(make_model(architecture, **SHAPE), tmp_path / "model")
    targets_by_name = TARGETS_OF.get(architecture, TARGETS)
    paths: list[Path | None] = [None]
    adapters = ADAPTERS if captured else [*ADAPTERS, *EAGER_ALONE]
    for index, (targets, rank, config) in enumerate(adapters):
        path = tmp_path / f"adapter{index}"
        model = make_model(architecture, **SHAPE)
        modules = targets_by_name[targets]
        add_adapter(model, path.name, path, rank=rank, target_modules=modules, seed=index, **config)
        paths.append(path)

    def run(
        device: str,
        recorder: Recorder | None = None,
        answers: dict[int, list[int]] | None = None,
    ) -> Rig:
        graphs = recorder.setup(GraphBuckets((1, 4), (4,), (24,))) if recorder else None
        rig = Rig(
            model_dir,
            num_pages=64,
            max_context=32,
            max_batch_tokens=8,
            device=device,
            graphs=graphs,
            lora_stream=True,
            speculative_tokens=2 if answers else 0,
        )
        if answers:
            force_drafts(rig, answers)
        rig.engine.use_vocabulary(VOCABULARY)
        gpu.is_serving = True
        for handle, path in enumerate(paths):
            # At random, with penalties and all filters, and some tokens that may not come yet.
            asked = {
                "temperature": 0.8,
                "top_k": 20,
                "top_p": 0.95,
                "min_p": 0.01,
                "repetition_penalty": 1.3,
                "presence_penalty": 0.2,
                "min_tokens": 3,
                "stop_token_ids": (3, 4),
                "logprobs": 2,
            }
            prompt = [3 + handle, 5, 7, 11, 2][: max(2, 5 - handle)]
            sampling = asked if handle % 2 else {"logit_bias": ((7, 1.5), (9, -100.0))}
            rig.submit(handle, prompt, path, max_tokens=max(2, 6 - handle), seed=handle, **sampling)
            if handle < NUM_CONSTRAINED:
                text = grammar(regex="[a-e]{4}f?")
                rig.submit(20 + handle, prompt, path, max_tokens=6, grammar=text, **sampling)
        rig.run()
        assert not rig.failed
        for handle in range(NUM_CONSTRAINED):
            text = "".join(LETTERS[token - 3] for token in rig.tokens[20 + handle] if token > 2)
            # Where stop tokens were asked for, one may end it sooner.
            assert re.fullmatch("[a-e]{4}f?|[a-e]{2,3}[ab]", text), text
        return rig

    if not captured:  # nor do pages come in a row
        of = PageRun.of
        monkeypatch.setattr(PageRun, "of", lambda ids: replace(of(ids), first=-1))
    gpu = StandInGpu()
    expected = run("cpu").tokens
    pretend(monkeypatch)
    used = {"fork": 0, "launch": 0, "__init__": 0}
    for owner, name in ((SideStream, "fork"), (CudaDevice, "launch"), (CudaCopy, "__init__")):
        count_calls(monkeypatch, owner, name, used)
    recorder = Recorder() if captured else None
    gpu.is_serving = False
    with gpu:
        rig = run("cuda", recorder, expected)
    assert 0 < rig.engine.stats().num_accepted_tokens < rig.engine.stats().num_drafted_tokens
    assert rig.tokens == expected and all(used.values()), used
    if recorder is not None:
        assert recorder.num_replayed == rig.engine.stats().num_graph_steps > 0


@pytest.mark.parametrize(("form", "dtype"), [("fp4", "float32"), ("gptq-4", "bfloat16")])
def test_quantised_weights_stay_so_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, dtype: str
) -> None:
    shape = {**SHAPE, "num_hidden_layers": 1, "intermediate_size": 64}
    model = quantized_model(form, tmp_path / "model", **shape)
    add_adapter(
        model, "a", tmp_path / "a", rank=4, target_modules="all-linear", seed=1, use_dora=True
    )
    gpu = StandInGpu()

    def run(device: str, dtype: str) -> Rig:
        gpu.is_serving = False
        rig = Rig(
            tmp_path / "model",
            num_pages=48,
            max_context=24,
            max_batch_tokens=8,
            device=device,
            dtype=getattr(torch, dtype),
            lora_stream=True,
        )
        gpu.is_serving = True
        for handle, path in enumerate([None, tmp_path / "a"]):
            rig.submit(handle, [3 + handle, 5, 7], path, max_tokens=2, ignore_eos=True)
        rig.run()
        assert not rig.failed
        return rig

    expected = run("cpu", "float32")
    pretend(monkeypatch)
    with gpu:
        rig = run("cuda", dtype)
        weights = rig.engine._decoder.weights
    kind = {"fp4": "fp4", "gptq-4": "uint4"}[form]
    for layer in weights.layers:
        for each in (layer.qkv, layer.o, layer.gate_up, layer.down):
            assert isinstance(each, QuantizedMatrix) and each.kind == kind
    assert isinstance(weights.head, QuantizedMatrix) == (form == "fp4")
    if dtype == "float32":
        assert rig.tokens == expected.tokens
    for handle, rows in expected.logits.items():
        error = (rig.logits[handle][0] - rows[0]).abs().max()
        assert error < (1e-4 if dtype == "float32" else 0.03) * rows[0].abs().max()


@pytest.mark.parametrize("captured", [False, True])
def test_a_mixture_of_experts_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captured: bool
) -> None:
    """Nothing of routing, nor of adapters on experts, goes by the host; those of the shared expert
    run beside it."""
    shape = {**SHAPE, "num_experts": 8, "num_experts_per_tok": 2, "mlp_only_layers": [0]}
    shape |= {"decoder_sparse_step": 1, "moe_intermediate_size": 16}
    model = make_model("qwen2-moe", **shape)
    model_dir = save_model(model, tmp_path / "model")
    targets = ["q_proj", "shared_expert.gate_proj", "shared_expert.down_proj"]
    add_adapter(
        *(model, "a", tmp_path / "a"),
        rank=8,
        target_modules=targets,
        target_parameters=["gate_up_proj", "down_proj", "gate.weight"],
        seed=1,
    )
    gpu = StandInGpu()

    def run(device: str, recorder: Recorder | None = None) -> Rig:
        gpu.is_serving = False
        rig = Rig(
            model_dir,
            num_pages=128,
            max_context=24,
            max_batch_tokens=8,
            device=device,
            graphs=recorder.setup(GraphBuckets((4,), (3,), (16,))) if recorder else None,
            lora_stream=True,
        )
        gpu.is_serving = True
        for handle, path in enumerate([None, tmp_path / "a"]):
            rig.submit(handle, [3 + handle, 5], path, max_tokens=2, ignore_eos=True)
        rig.run()
        assert not rig.failed
        return rig

    expected = run("cpu")
    pretend(monkeypatch)
    recorder = Recorder() if captured else None
    with gpu:
        rig = run("cuda", recorder)
    assert rig.tokens == expected.tokens
    if recorder is not None:
        assert recorder.num_replayed == rig.engine.stats().num_graph_steps > 0
        return  # what a graph writes is written over
    for handle, rows in expected.logits.items():
        for mine, others in zip(rig.logits[handle], rows, strict=True):
            torch.testing.assert_close(mine, others, rtol=0, atol=1e-4)
