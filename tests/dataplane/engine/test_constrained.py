"""Constrained answers: they hold to their grammar, in any batch, after any interruption, and
nobody else's tokens change."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dataplane.channel import Vocabulary
from dataplane.constraints import matcher
from dataplane.engine import mask_threads, masks
from dataplane.errors import ConstraintError, ConstraintsUnsupportedError, QueueFullError
from tests.helpers.constraints import (
    EOS,
    MODEL,
    PERSON,
    demo_tokenizer,
    demo_vocabulary,
    grammar,
    holds,
    text_of,
)
from tests.helpers.engine import Rig
from tests.helpers.models import make_model, save_model

PROMPT = demo_tokenizer().encode("407 =").ids
CHOICES = ["yes", "no", "maybe so"]
REGEX = r"[a-c]{2,5}-\d{1,4}"
NUMBER = {"type": "integer", "minimum": 0, "maximum": 9999}
LIST = {"type": "array", "items": NUMBER, "minItems": 3, "maxItems": 6}
GRAMMARS = {
    "json": grammar(json_schema=PERSON),
    "list": grammar(json_schema=LIST),
    "regex": grammar(regex=REGEX),
    "choices": grammar(choices=CHOICES),
    "lark": grammar(grammar='start: ("x" | "yz")~2..4 "!"'),
}
GREEDY: dict[str, Any] = {"max_tokens": 64}
DRAWN: dict[str, Any] = {"temperature": 1.3, "top_k": 60, "top_p": 0.97, "min_p": 0.001, **GREEDY}


def rig_of(model: Path = MODEL, **options: Any) -> Rig:
    rig = Rig(model, **options)
    rig.engine.use_vocabulary(demo_vocabulary())
    return rig


def is_right(kind: str, text: str) -> bool:
    match kind:
        case "json":
            return holds(PERSON, json.loads(text))
        case "list":
            return holds(LIST, json.loads(text))
        case "regex":
            return re.fullmatch(REGEX, text) is not None
        case "choices":
            return text in CHOICES
        case _:
            return re.fullmatch("(x|yz){2,4}!", text) is not None


def output_of(rig: Rig, handle: int) -> str:
    return text_of(rig.tokens[handle])


@pytest.fixture(scope="module")
def mixed() -> tuple[Rig, dict[int, tuple[str, dict[str, Any]]]]:
    """A batch of all kinds, greedy and drawn, between requests without constraints."""
    rig, asked = rig_of(), {}
    for seed in range(4):
        for kind in ("", *GRAMMARS):
            sampling = {**(DRAWN if seed else GREEDY), "seed": seed}
            asked[len(asked)] = kind, sampling
            rig.submit(len(asked) - 1, PROMPT, grammar=GRAMMARS.get(kind, ""), **sampling)
    rig.run()
    assert not rig.failed
    return rig, asked


def test_every_answer_holds_to_its_constraint(mixed: Any) -> None:
    rig, asked = mixed
    num_whole = 0
    for handle, (kind, _) in asked.items():
        if kind and rig.finished[handle] == "stop":
            assert is_right(kind, output_of(rig, handle)), (kind, output_of(rig, handle))
            num_whole += 1
    assert num_whole >= 16, "those that max_tokens cuts off are few"
    texts = {output_of(rig, handle) for handle, (kind, _) in asked.items() if kind == "regex"}
    assert len(texts) > 1, "they are drawn"
    stats = rig.engine.stats()
    assert stats.num_grammars == len(GRAMMARS), "each compiled once"
    assert stats.num_masks >= sum(len(rig.tokens[h]) for h, (kind, _) in asked.items() if kind)
    assert stats.mask_s > 0 and stats.grammar_s > 0


def test_others_get_the_tokens_that_they_would_get_alone(mixed: Any) -> None:
    rig, asked = mixed
    alone = Rig(MODEL)
    for handle, (kind, sampling) in asked.items():
        if not kind:
            alone.submit(handle, PROMPT, **sampling)
    alone.run()
    assert alone.tokens and all(alone.tokens[each] == rig.tokens[each] for each in alone.tokens)
    assert alone.engine.stats().num_masks == 0


def test_steps_in_flight_change_nothing(mixed: Any) -> None:
    rig, asked = mixed
    apart = rig_of(pipeline_depth=1)
    for handle, (kind, sampling) in asked.items():
        apart.submit(handle, PROMPT, grammar=GRAMMARS.get(kind, ""), **sampling)
    apart.run()
    assert apart.tokens == rig.tokens and apart.finished == rig.finished


def test_steps_with_constrained_rows_overlap() -> None:
    """The next forward pass is given to the device before the token is read that its rows'
    sampling depends on."""
    rig = rig_of()
    pipeline = rig.engine._pipeline
    depths: list[int] = []
    launch = pipeline.launch

    def counting(*arguments: Any) -> None:
        launch(*arguments)
        depths.append(len(pipeline))

    pipeline.launch = counting  # pyright: ignore[reportAttributeAccessIssue]
    for handle in range(3):
        rig.submit(handle, PROMPT, grammar=GRAMMARS["list"], seed=handle, **DRAWN)
    rig.run()
    assert depths.count(2) >= len(depths) - 3, depths


@pytest.mark.parametrize("kind", ["json", "regex"])
def test_an_interrupted_answer_goes_on_with_the_same_tokens(mixed: Any, kind: str) -> None:
    rig, asked = mixed
    handle = next(h for h, (k, s) in asked.items() if k == kind and s["seed"] == 2)
    tokens, again = rig.tokens[handle], rig_of()
    for cut in range(len(tokens) + 1):
        again.submit(
            cut, PROMPT, grammar=GRAMMARS[kind], generated=tokens[:cut], **asked[handle][1]
        )
    again.run()
    assert not again.failed
    for cut in range(len(tokens) + 1):
        assert tokens[:cut] + again.tokens.get(cut, []) == tokens, cut
        assert again.finished[cut] == rig.finished[handle]


def test_preempted_answers_are_the_same(mixed: Any) -> None:
    rig, asked = mixed
    small = rig_of(num_pages=32)
    for handle, (kind, sampling) in asked.items():
        small.submit(handle, PROMPT, grammar=GRAMMARS.get(kind, ""), **sampling)
    small.run()
    assert small.engine.stats().num_preemptions > 0
    assert small.tokens == rig.tokens


def test_tokens_that_the_grammar_cannot_have_given_are_refused_and_nobody_else_is_disturbed() -> (
    None
):
    rig = rig_of()
    rig.submit(1, PROMPT, grammar=GRAMMARS["choices"], generated=PROMPT[1:], **GREEDY)
    rig.submit(2, PROMPT, grammar=GRAMMARS["choices"], **GREEDY)
    rig.run()
    assert isinstance(rig.failed[1], ConstraintError) and output_of(rig, 2) in CHOICES


def test_what_ends_an_answer() -> None:
    rig = rig_of()
    word, many = grammar(choices=["no"]), grammar(regex="a+")
    a = demo_tokenizer().encode("a", add_special_tokens=False).ids[0]
    rig.submit(1, PROMPT, grammar=word, ignore_eos=True, min_tokens=40, **GREEDY)
    rig.submit(2, PROMPT, grammar=many, ignore_eos=True, **GREEDY)
    rig.submit(3, PROMPT, grammar=many, min_tokens=7, logit_bias=((EOS, 100.0),), **GREEDY)
    rig.submit(4, PROMPT, grammar=many, stop_token_ids=(a,), min_tokens=3, **GREEDY)
    rig.submit(5, PROMPT, grammar=GRAMMARS["json"], max_tokens=3)
    rig.submit(6, PROMPT, grammar=word, max_tokens=len(demo_tokenizer().encode("no").ids) - 1)
    rig.submit(7, PROMPT, grammar=grammar(regex="(ab)?"), logit_bias=((EOS, 100.0),), **GREEDY)
    rig.run()
    assert not rig.failed
    assert (rig.finished[1], output_of(rig, 1)) == ("stop", "no"), "the grammar goes first"
    assert rig.finished[2] == "length" and set(output_of(rig, 2)) == {"a"}
    assert len(rig.tokens[2]) == 64 and EOS not in rig.tokens[2]
    assert (rig.finished[3], rig.tokens[3][-1], len(rig.tokens[3])) == ("stop", EOS, 8)
    assert set(output_of(rig, 3)) == {"a"}
    assert (rig.finished[4], rig.tokens[4]) == ("stop", [a] * 4), "nothing else could come"
    assert rig.finished[5] == "length" and len(rig.tokens[5]) == 3
    assert (rig.finished[6], output_of(rig, 6)) == ("stop", "no"), "complete with its last token"
    assert rig.tokens[7] == [EOS] and rig.finished[7] == "stop"


def test_logprobs_are_of_the_unmodified_distribution() -> None:
    rig = rig_of()
    outputs: list[Any] = []
    step = rig.engine.step

    def recording() -> Any:
        result = step()
        outputs.extend(result.outputs)
        return result

    rig.engine.step = recording  # pyright: ignore[reportAttributeAccessIssue]
    rig.submit(1, PROMPT, grammar=GRAMMARS["json"], logprobs=2, logit_bias=((5, 50.0),), **DRAWN)
    rig.run()
    found = [each for output in outputs for each in output.logprobs]
    assert len(found) == len(rig.tokens[1])
    for logits, token, logprobs in zip(rig.logits[1], rig.tokens[1], found, strict=True):
        expected = logits.log_softmax(-1)
        assert abs(logprobs.logprob - float(expected[token])) < 1e-4
        assert logprobs.top_ids == expected.topk(2).indices.tolist()
    assert min(each.logprob for each in found) < -8, "something unlikely was enforced"


def test_biases_are_added_before_the_choice() -> None:
    rig = rig_of()
    rig.submit(1, PROMPT, logit_bias=((70, 100.0),), max_tokens=5, ignore_eos=True)
    rig.submit(2, PROMPT, max_tokens=12)
    rig.submit(3, PROMPT, logit_bias=((70, 0.0001),), max_tokens=12)
    rig.submit(4, PROMPT, logit_bias=((70, 100.0),), max_tokens=5, ignore_eos=True, **{
        "temperature": 1.0, "seed": 3})  # fmt: skip
    rig.run()
    assert rig.tokens[1] == [70] * 5 == rig.tokens[4]
    assert rig.tokens[2] == rig.tokens[3]
    banned = tuple((token, -100.0) for token in sorted(set(rig.tokens[2])))
    rig.submit(5, PROMPT, logit_bias=banned, max_tokens=12)
    rig.run()
    assert not set(rig.tokens[5]) & set(rig.tokens[2])
    first = rig.logits[2][0].clone()
    first[rig.tokens[2][0]] -= 100.0
    assert rig.tokens[5][0] == int(first.argmax()) != rig.tokens[2][0]


def test_a_penalty_sees_the_biased_logits_and_the_mask_has_the_last_word() -> None:
    rig = rig_of()
    options: dict[str, Any] = {"repetition_penalty": 5.0, "frequency_penalty": 2.0, **GREEDY}
    wanted = tuple((token, 100.0) for token in range(3, 303))
    rig.submit(1, PROMPT, grammar=GRAMMARS["regex"], logit_bias=wanted, **options)
    rig.run()
    assert is_right("regex", output_of(rig, 1))


def test_a_model_with_more_ids_than_its_tokenizer(tmp_path: Path) -> None:
    vocab = 700
    model = save_model(
        make_model("llama", vocab_size=vocab, num_hidden_layers=1, eos_token_id=EOS), tmp_path / "m"
    )
    rig = Rig(model)
    rig.engine.use_vocabulary(demo_vocabulary(vocab))
    for seed in range(4):
        rig.submit(seed, PROMPT, grammar=GRAMMARS["regex"], temperature=2.0, seed=seed, **GREEDY)
    rig.run()
    assert all(is_right("regex", output_of(rig, seed)) for seed in range(4))


def test_slow_masks_are_filled_beside_each_other_and_change_nothing(
    monkeypatch: pytest.MonkeyPatch, mixed: Any
) -> None:
    """A thread's first one waits until another thread has begun one, too."""
    rig, asked = mixed
    monkeypatch.setattr(mask_threads, "num_threads", lambda: 3)
    monkeypatch.setattr(masks, "_SLOW_S", 0.0)
    met, fill = threading.Event(), masks.Masks._fill
    threads: set[int] = set()

    def meeting(self: Any, row: Any, sequence: Any) -> None:
        if sequence.mask_cpu_s:
            threads.add(threading.get_ident())
            if len(threads) > 1:
                met.set()
            met.wait(60)
            met.set()  # or each would wait
        fill(self, row, sequence)

    monkeypatch.setattr(masks.Masks, "_fill", meeting)
    again = rig_of()
    for handle, (kind, sampling) in asked.items():
        again.submit(handle, PROMPT, grammar=GRAMMARS.get(kind, ""), **sampling)
    again.run()
    again.engine.close()
    assert again.tokens == rig.tokens and again.finished == rig.finished
    assert 2 <= len(threads) <= 3


def test_who_waits_for_a_grammar_waits_alone_and_can_leave() -> None:
    rig = rig_of(max_waiting=2)
    held: list[Any] = []
    grammars = rig.engine._constrained._grammars
    wanted = grammars._wanted
    grammars._wanted = SimpleNamespace(put=held.append, get=wanted.get)  # pyright: ignore
    for handle in (1, 2, 3):
        rig.submit(handle, PROMPT, grammar=GRAMMARS["choices"], **GREEDY)
    assert rig.engine.is_waiting_for_loads is False, "the refusal is to be told"
    rig.step()
    assert isinstance(rig.failed[3], QueueFullError)
    assert rig.engine.is_waiting_for_loads and rig.engine.stats().num_waiting == 2
    rig.submit(4, PROMPT, **GREEDY)
    assert not rig.engine.is_waiting_for_loads
    while 4 not in rig.finished:
        rig.step()
    rig.engine.abort(1)
    for each in held:
        wanted.put(each)
    grammars._wanted = wanted
    rig.run()
    assert 1 not in rig.tokens and output_of(rig, 2) in CHOICES


def test_without_a_vocabulary_that_can_be_used_a_grammar_is_refused() -> None:
    rig = Rig(MODEL)
    rig.submit(1, PROMPT, grammar=GRAMMARS["choices"], **GREEDY)
    rig.run()
    assert isinstance(rig.failed[1], ConstraintsUnsupportedError)
    rig.engine.use_vocabulary(
        Vocabulary(tokenizer=b"{}", num_tokens=3, vocab_size=512, eos_token_ids=[])
    )
    rig.submit(2, PROMPT, grammar=GRAMMARS["choices"], **GREEDY)
    rig.run()
    assert "tokenizer" in str(rig.failed[2])
    rig.engine.use_vocabulary(demo_vocabulary())
    rig.submit(3, PROMPT, grammar=GRAMMARS["choices"], **GREEDY)
    rig.run()
    assert output_of(rig, 3) in CHOICES


def test_a_vocabulary_is_read_when_it_is_told_not_when_requests_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reading one keeps the step loop from running, for a second and more where it is large."""
    rig = Rig(MODEL)
    rig.engine.use_vocabulary(demo_vocabulary())
    monkeypatch.setattr(matcher, "LLTokenizer", None)
    rig.submit(1, PROMPT, grammar=GRAMMARS["choices"], **GREEDY)
    rig.run()
    assert output_of(rig, 1) in CHOICES


def test_where_no_thread_can_be_started_only_that_request_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    rig = rig_of()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        rig.submit(1, PROMPT, grammar=GRAMMARS["choices"], **GREEDY)
    rig.step()
    assert "thread" in str(rig.failed[1]) and not rig.engine.has_work
    rig.submit(2, PROMPT, grammar=GRAMMARS["choices"], **GREEDY)
    rig.run()
    assert output_of(rig, 2) in CHOICES


def test_an_engine_closes_in_the_midst_of_constrained_steps() -> None:
    rig = rig_of()
    for handle in range(3):
        rig.submit(handle, PROMPT, grammar=GRAMMARS["list"], **GREEDY)
    while not rig.tokens:
        rig.step()
    rig.engine.close()
    thread = rig.engine._constrained._grammars._thread
    assert thread is not None and not thread.is_alive()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_aborted_answer_frees_its_pages(dtype: torch.dtype) -> None:
    rig = rig_of(dtype=dtype)
    for handle in range(2):
        rig.submit(handle, PROMPT, grammar=GRAMMARS["list"], seed=handle, **DRAWN)
    while len(rig.tokens.get(0, ())) < 4:
        rig.step()
    rig.engine.abort(0)
    rig.run()
    assert is_right("list", output_of(rig, 1))
