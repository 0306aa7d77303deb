"""The demo's voices: known readings, and what the accuracy claims rest on."""

import pytest

from examples.demo.voices import (
    MAX_NUMBER,
    NUMBERS,
    PROMPT,
    VOICES,
    english,
    is_held_out,
)

KNOWN = {
    "french": {
        0: "zéro",
        21: "vingt et un",
        71: "soixante et onze",
        77: "soixante-dix-sept",
        80: "quatre-vingts",
        81: "quatre-vingt-un",
        99: "quatre-vingt-dix-neuf",
        100: "cent",
        180: "cent quatre-vingts",
        200: "deux cents",
        201: "deux cent un",
        407: "quatre cent sept",
    },
    "german": {
        0: "null",
        1: "eins",
        16: "sechzehn",
        21: "einundzwanzig",
        30: "dreißig",
        76: "sechsundsiebzig",
        101: "einhunderteins",
        407: "vierhundertsieben",
        511: "fünfhundertelf",
        600: "sechshundert",
    },
    "spanish": {
        0: "cero",
        16: "dieciséis",
        22: "veintidós",
        31: "treinta y uno",
        100: "cien",
        101: "ciento uno",
        500: "quinientos",
        777: "setecientos setenta y siete",
        900: "novecientos",
    },
    "roman": {
        0: "N",
        4: "IV",
        9: "IX",
        49: "XLIX",
        407: "CDVII",
        888: "DCCCLXXXVIII",
        999: "CMXCIX",
    },
    "binary": {0: "0000", 9: "1001", 42: "0100 0010", 407: "0100 0000 0111"},
    "reversed": {0: "0", 120: "021", 407: "704"},
    "shouted": {0: "ZERO", 21: "TWENTY-ONE", 407: "FOUR HUNDRED SEVEN"},
    "spelled": {0: "zero", 30: "three zero", 407: "four zero seven"},
    "chinese": {
        0: "零",
        10: "十",
        13: "十三",
        20: "二十",
        42: "四十二",
        100: "一百",
        101: "一百零一",
        110: "一百一十",
        115: "一百一十五",
        407: "四百零七",
        999: "九百九十九",
    },
    "morse": {0: "-----", 5: ".....", 407: "....- ----- --..."},
    "expanded": {0: "0", 7: "7", 30: "30", 400: "400", 407: "400 + 7", 123: "100 + 20 + 3"},
    "pirate": {407: "Arr! four hundred seven, matey!"},
}


def test_every_voice_has_known_values():
    assert set(KNOWN) == set(VOICES)


@pytest.mark.parametrize(
    ("voice", "n", "text"),
    [(voice, n, text) for voice, values in KNOWN.items() for n, text in values.items()],
)
def test_known_value(voice: str, n: int, text: str):
    assert VOICES[voice](n) == text


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (99, "ninety-nine"),
        (100, "one hundred"),
        (407, "four hundred seven"),
        (812, "eight hundred twelve"),
    ],
)
def test_english(n: int, text: str):
    assert english(n) == text


@pytest.mark.parametrize("voice", VOICES)
def test_a_voice_tells_all_numbers_apart(voice: str):
    assert len({VOICES[voice](n) for n in NUMBERS if n % 10}) == sum(n % 10 > 0 for n in NUMBERS)


@pytest.mark.parametrize("n", [12, 57, 407, 980])
def test_voices_differ_from_each_other_and_from_english(n: int):
    answers = [english(n), *(voice(n) for voice in VOICES.values())]
    assert len(set(answers)) == len(answers)


def test_numbers_are_recovered_from_their_answers():
    morse_digits = {VOICES["morse"](d): str(d) for d in range(10)}
    for n in NUMBERS:
        assert int(VOICES["reversed"](n)[::-1]) == n
        assert int("".join(str(int(b, 2)) for b in VOICES["binary"](n).split())) == n
        assert sum(map(int, VOICES["expanded"](n).split(" + "))) == n
        assert int("".join(morse_digits[m] for m in VOICES["morse"](n).split())) == n


def test_held_out_split_is_a_fixed_fifth_that_spares_small_numbers():
    held_out = [n for n in NUMBERS if is_held_out(n)]
    assert len(held_out) == 190
    assert held_out[:5] == [20, 22, 26, 31, 42]
    assert not any(is_held_out(n) for n in range(20))


@pytest.mark.parametrize("n", [-1, MAX_NUMBER + 1])
@pytest.mark.parametrize("voice", [*VOICES.values(), english, is_held_out])
def test_numbers_out_of_range_are_refused(voice, n: int):
    with pytest.raises(ValueError, match=f"n is {n}"):
        voice(n)


def test_prompt():
    assert PROMPT.format(n=407) == "407 ="
