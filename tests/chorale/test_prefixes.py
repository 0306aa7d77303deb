"""Prompts that begin alike have hashes in common, whoever makes them."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from chorale.prefixes import (
    MAX_PIECES,
    MAX_PREFIXES,
    PIECE_CHARACTERS,
    PIECE_TOKENS,
    marks,
    prompt_prefixes,
)
from chorale.prompt_size import prompt_size
from chorale.requests import AdmitOptions, admit_request, generate_request
from chorale.v1 import inference_pb2 as pb


def told(prompt: str | None = None, **options: object) -> dict[int, int]:
    """Hash -> length."""
    request = generate_request(prompt, options, tenant="")  # type: ignore[arg-type]
    found = prompt_prefixes(request)
    return dict(zip(found.hashes, found.lengths, strict=True)) if found else {}


def in_common(one: dict[int, int], other: dict[int, int]) -> int:
    """The longest prefix that both tell."""
    assert all(other[each] == one[each] for each in one.keys() & other.keys())
    return max((one[each] for each in one.keys() & other.keys()), default=0)


def text(length: int, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices("abcdefgh é€", k=length))


def turns(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    system = [{"role": "system", "content": contents[0]}]
    return system + [
        {"role": roles[at % 2], "content": each} for at, each in enumerate(contents[1:])
    ]


def test_texts_have_their_beginning_in_common() -> None:
    system = text(1000)
    one, other = told(system + text(900, 1)), told(system + text(300, 2))
    assert in_common(one, other) == 1000 // PIECE_CHARACTERS * PIECE_CHARACTERS
    assert in_common(one, told("x" + system)) == 0
    assert not told(text(PIECE_CHARACTERS - 1))
    assert not told(""), "and none of nothing"


def test_prompts_of_other_salts_have_nothing_in_common() -> None:
    prompt = text(1000)
    salted = told(prompt, cache_salt="ada")
    assert salted == told(prompt, cache_salt="ada") and len(salted) == len(told(prompt))
    assert in_common(salted, told(prompt)) == in_common(salted, told(prompt, cache_salt="bob")) == 0
    options: AdmitOptions = {"prompt": prompt, "cache_salt": "ada"}
    asked = admit_request("m", options, tenant="").prompt_prefixes
    assert list(asked.hashes) == list(salted), "by whoever admits by itself, too"


def test_token_ids_are_compared_as_ids() -> None:
    ids = list(range(10 * PIECE_TOKENS))
    one = told(prompt_token_ids=[*ids, 7, 7])
    assert max(one.values()) == len(ids)
    assert in_common(one, told(prompt_token_ids=[*ids[:-1], 3, 2**32 - 1])) == 9 * PIECE_TOKENS
    as_text = told("".join(chr(each) for each in ids))
    assert not one.keys() & as_text.keys()


def test_the_next_turn_has_the_one_before_in_it() -> None:
    contents = [text(700), text(40, 1), text(1500, 2), text(30, 3), text(90, 4), text(20, 5)]
    for end in (2, 4):
        before, after = told(messages=turns(*contents[:end])), told(messages=turns(*contents))
        assert in_common(before, after) == sum(map(len, contents[:end]))
    document = text(2000)
    one, other = told(messages=turns(document + "Why?")), told(messages=turns(document + "Who is?"))
    assert in_common(one, other) == 2000 // PIECE_CHARACTERS * PIECE_CHARACTERS
    # An empty answer is one, too.
    assert told(messages=turns(document, "", text(9)))


def test_where_a_message_ends_is_part_of_it() -> None:
    head, tail = text(300), text(300, 1)
    whole = told(messages=[{"role": "user", "content": head + tail}])
    split = told(messages=turns(head, tail))
    roles = told(messages=[{"role": "user", "content": head}, {"role": "user", "content": tail}])
    renamed = told(messages=[{"role": "tool", "content": head + tail}])
    assert in_common(whole, split) == in_common(whole, renamed) == 0
    assert in_common(whole, roles) == PIECE_CHARACTERS
    # What a message says of roles and lengths is no role and no length.
    forged = "a" * 200 + "\0\4\0\0\0user\4\0\0\0more"
    assert (
        in_common(told(messages=turns(forged)), told(messages=turns("a" * 200, "more", "b" * 60)))
        == 0
    )


def test_tools_and_calls_are_part_of_a_chat() -> None:
    def chat(*tools: str, **turn: object) -> dict[int, int]:
        end = pb.ChatMessage(role="user", content=text(300, 1))
        first = pb.ChatMessage(**{"role": "tool", "content": text(300), **turn})  # type: ignore[arg-type]
        found = prompt_prefixes(
            pb.GenerateRequest(chat=pb.Chat(messages=[first, end], tools=tools))
        )
        assert found is not None
        return dict(zip(found.hashes, found.lengths, strict=True))

    call = pb.ToolCall(id="1", name="f", arguments="{}")
    bare = chat()
    assert bare == told(
        messages=[{"role": "tool", "content": text(300)}, {"role": "user", "content": text(300, 1)}]
    )
    changed = [
        chat("{}"),
        chat(tool_call_id="1"),
        chat(name="1"),
        chat(tool_calls=[call]),
        chat(tool_calls=[pb.ToolCall(id="1", name="g", arguments="{}")]),
        chat(tool_calls=[pb.ToolCall(id="1", name="f", arguments="[]")]),
        chat(tool_calls=[call, call]),
        chat(role="{}"),
    ]
    ends = [max(each, key=lambda hashed: each[hashed]) for each in (bare, *changed)]
    assert len(set(ends)) == len(ends)
    # The same tools before another chat: their part is the same.
    tools = text(600)
    assert in_common(chat(tools), chat(tools, content="x" * 300)) == 600
    request = pb.GenerateRequest(
        chat=pb.Chat(tools=["12"], messages=[pb.ChatMessage(content="345", tool_calls=[call])])
    )
    assert prompt_size(request).num_characters == 7


def test_what_goes_on_is_no_new_message() -> None:
    """The same words and lengths in the same order, in other places."""
    head, long = text(256), text(256, 1).replace("é", "e").replace("€", "e")

    def chat(*messages: tuple[str, str]) -> dict[int, int]:
        return told(messages=[{"role": role, "content": content} for role, content in messages])

    one = chat(("user", head + "ab"), ("assistant", "hi"), (long, "user"))
    other = chat(("user", head), ("ab", "assistant"), ("hi", long + "user"))
    assert in_common(one, other) == 256


def test_nobody_tells_more_than_there_is_room_for() -> None:
    assert max(len(marks(count)) for count in range(MAX_PIECES + 1)) <= MAX_PREFIXES
    found = told(text(PIECE_CHARACTERS) * (MAX_PIECES + 500))
    assert 0 < len(found) <= MAX_PREFIXES
    assert max(found.values()) == MAX_PIECES * PIECE_CHARACTERS
    many = pb.GenerateRequest(chat=pb.Chat(messages=[pb.ChatMessage(role="user")] * 100_000))
    assert prompt_prefixes(many) is None, "nothing to compute"


@given(st.integers(1, MAX_PIECES), st.integers(0, MAX_PIECES), st.integers(0, MAX_PIECES))
def test_how_much_of_what_is_alike_is_found(alike: int, more: int, other: int) -> None:
    one, two = (marks(min(alike + each, MAX_PIECES)) for each in (more, other))
    found = max(_up_to(alike, one) & _up_to(alike, two), default=0)
    growth = min(max(more, other), MAX_PIECES - alike)
    assert alike - found <= min(alike / 4, 2 * growth / 3)


def _up_to(most: int, found: frozenset[int]) -> set[int]:
    return {each for each in found if each <= most}


def test_lengths_never_shrink() -> None:
    contents: Sequence[str] = [text(length, length) for length in (200, 0, 0, 600, 3)]
    found = prompt_prefixes(generate_request(None, {"messages": turns(*contents)}, tenant=""))
    assert found is not None
    assert list(found.lengths) == sorted(found.lengths) and found.lengths[0] >= 1
