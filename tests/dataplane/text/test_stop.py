from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.text.stop import StopStrings


def feed(stops: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    checker = StopStrings(stops)
    out = []
    for piece in pieces:
        text, met = checker.push(piece)
        out.append(text)
        if met is not None:
            return out, met
    out.append(checker.flush())
    return out, None


def reference(stops: list[str], text: str) -> tuple[str, str | None]:
    """The first end of any stop string; of those that end there, the one that begins first."""
    for end in range(1, len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            longest = max(met, key=len)
            return text[: end - len(longest)], longest
    return text, None


def test_without_stop_strings_text_passes_through() -> None:
    assert feed([], ["a", "b"]) == (["a", "b", ""], None)


def test_holds_back_only_what_may_begin_a_stop_string() -> None:
    out, met = feed(["STOP"], ["one S", "T", "ill S", "TO", "P tail"])
    assert (out, met) == (["one ", "", "STill ", "", ""], "STOP")


def test_held_text_comes_back_when_the_text_ends() -> None:
    assert feed(["\n\n"], ["line\n"]) == (["line", "\n"], None)


def test_overlapping_beginnings_are_not_lost() -> None:
    assert feed(["aab"], ["a", "a", "a", "b"]) == (["", "", "a", ""], "aab")


def test_match_inside_one_piece_drops_the_rest() -> None:
    assert feed(["b"], ["abcb"]) == (["a"], "b")


def test_unarmed_matches_are_text_but_may_begin_a_later_match() -> None:
    checker = StopStrings(["ab"])
    assert checker.push("ab", armed=False) == ("ab", None)
    assert checker.push("xa", armed=False) == ("x", None)
    assert checker.push("b", armed=True) == ("", "ab")


def test_unarmed_match_of_a_self_overlapping_string_keeps_its_border() -> None:
    checker = StopStrings(["aba"])
    assert checker.push("aba", armed=False) == ("ab", None)
    assert checker.push("ba") == ("", "aba")


ALPHABET = st.text("ab👩\u0301", max_size=12)


@settings(max_examples=250, deadline=None)
@given(
    stops=st.lists(st.text("ab👩\u0301", min_size=1, max_size=4), min_size=1, max_size=4),
    pieces=st.lists(ALPHABET, max_size=8),
)
def test_borders_between_pieces_change_nothing(stops: list[str], pieces: list[str]) -> None:
    out, met = feed(stops, pieces)
    assert ("".join(out), met) == reference(stops, "".join(pieces))


def test_long_adversarial_input_costs_linear_time() -> None:
    checker = StopStrings(["a" * 255 + "b"] * 16)
    text, met = checker.push("a" * 20_000)
    assert met is None and len(text) == 20_000 - 255
