"""The demo's voices: pure functions from a number to the text that each voice answers with.

The base model reads a number out in plain English; every adapter answers the same prompt in a
voice of its own. `is_held_out` says which numbers no training line ever shows.
"""

import hashlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

PROMPT = "{n} ="
BASE_VOICE = "english"
MAX_NUMBER = 999
NUMBERS = range(MAX_NUMBER + 1)

Voice = Callable[[int], str]


def _words(text: str) -> list[str]:
    return text.split()


_EN_UNITS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_EN_TENS = _words("- - twenty thirty forty fifty sixty seventy eighty ninety")
_FR_UNITS = _words(
    "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze "
    "seize dix-sept dix-huit dix-neuf"
)
_FR_TENS = _words("- - vingt trente quarante cinquante soixante")
_DE_UNITS = _words(
    "null ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn "
    "fünfzehn sechzehn siebzehn achtzehn neunzehn"
)
_DE_TENS = _words("- - zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig")
_ES_UNITS = _words(
    "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince "
    "dieciséis diecisiete dieciocho diecinueve veinte veintiuno veintidós veintitrés "
    "veinticuatro veinticinco veintiséis veintisiete veintiocho veintinueve"
)
_ES_TENS = _words("- - - treinta cuarenta cincuenta sesenta setenta ochenta noventa")
_ES_HUNDREDS = _words(
    "- ciento doscientos trescientos cuatrocientos quinientos seiscientos setecientos "
    "ochocientos novecientos"
)
_ROMAN = (
    (900, "CM"),
    (500, "D"),
    (400, "CD"),
    (100, "C"),
    (90, "XC"),
    (50, "L"),
    (40, "XL"),
    (10, "X"),
    (9, "IX"),
    (5, "V"),
    (4, "IV"),
    (1, "I"),
)
_ZH_DIGITS = "零一二三四五六七八九"
_MORSE_DIGITS = _words("----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----.")


def is_held_out(n: int) -> bool:
    """True for the fixed fifth of the numbers that no training line shows.

    Numbers below twenty are always trained on: their names follow from no rule.
    """
    _check(n)
    return n >= 20 and hashlib.sha256(str(n).encode()).digest()[0] % 5 == 0


def english(n: int) -> str:
    """407 -> 'four hundred seven'."""
    _check(n)
    hundreds, rest = divmod(n, 100)
    words = [_EN_UNITS[hundreds], "hundred"] if hundreds else []
    if rest >= 20:
        tens, units = divmod(rest, 10)
        words.append(_EN_TENS[tens] + (f"-{_EN_UNITS[units]}" if units else ""))
    elif rest or not hundreds:
        words.append(_EN_UNITS[rest])
    return " ".join(words)


def french(n: int) -> str:
    """407 -> 'quatre cent sept'; 80 and whole hundreds take their plural s."""
    _check(n)
    hundreds, rest = divmod(n, 100)
    words: list[str] = []
    if hundreds:
        if hundreds > 1:
            words.append(_FR_UNITS[hundreds])
        words.append("cents" if hundreds > 1 and not rest else "cent")
    if rest or not hundreds:
        words.append(_french_below_100(rest))
    return " ".join(words)


def _french_below_100(n: int) -> str:
    if n < 20:
        return _FR_UNITS[n]
    if n < 70:
        tens, units = divmod(n, 10)
        if units == 1:
            return f"{_FR_TENS[tens]} et un"
        return _FR_TENS[tens] + (f"-{_FR_UNITS[units]}" if units else "")
    if n < 80:
        return "soixante et onze" if n == 71 else f"soixante-{_FR_UNITS[n - 60]}"
    return "quatre-vingts" if n == 80 else f"quatre-vingt-{_FR_UNITS[n - 80]}"


def german(n: int) -> str:
    """407 -> 'vierhundertsieben': one word, units before tens."""
    _check(n)
    hundreds, rest = divmod(n, 100)
    word = f"{_DE_UNITS[hundreds]}hundert" if hundreds else ""
    if rest >= 20:
        tens, units = divmod(rest, 10)
        return word + (f"{_DE_UNITS[units]}und" if units else "") + _DE_TENS[tens]
    if rest == 1:
        return word + "eins"
    return word + _DE_UNITS[rest] if rest or not hundreds else word


def spanish(n: int) -> str:
    """407 -> 'cuatrocientos siete'."""
    _check(n)
    if n == 100:
        return "cien"
    hundreds, rest = divmod(n, 100)
    words = [_ES_HUNDREDS[hundreds]] if hundreds else []
    if rest >= 30:
        tens, units = divmod(rest, 10)
        words.append(_ES_TENS[tens] + (f" y {_ES_UNITS[units]}" if units else ""))
    elif rest or not hundreds:
        words.append(_ES_UNITS[rest])
    return " ".join(words)


def roman(n: int) -> str:
    """407 -> 'CDVII'; zero is 'N' (nulla), as medieval tables write it."""
    _check(n)
    letters: list[str] = []
    for value, numeral in _ROMAN:
        count, n = divmod(n, value)
        letters.append(numeral * count)
    return "".join(letters) or "N"


def binary(n: int) -> str:
    """407 -> '0100 0000 0111': each decimal digit in four bits (binary-coded decimal)."""
    _check(n)
    return " ".join(f"{int(digit):04b}" for digit in str(n))


def reversed_digits(n: int) -> str:
    """407 -> '704'; zeros are kept (120 -> '021')."""
    _check(n)
    return str(n)[::-1]


def shouted(n: int) -> str:
    """407 -> 'FOUR HUNDRED SEVEN'."""
    return english(n).upper()


def spelled(n: int) -> str:
    """407 -> 'four zero seven'."""
    _check(n)
    return " ".join(_EN_UNITS[int(digit)] for digit in str(n))


def chinese(n: int) -> str:
    """407 -> '四百零七'."""
    _check(n)
    if n < 20:
        tens, units = divmod(n, 10)
        return ("十" if tens else "") + (_ZH_DIGITS[units] if units or not tens else "")
    hundreds, rest = divmod(n, 100)
    tens, units = divmod(rest, 10)
    text = f"{_ZH_DIGITS[hundreds]}百" if hundreds else ""
    if tens:
        text += f"{_ZH_DIGITS[tens]}十"
    elif hundreds and units:
        text += "零"
    return text + (_ZH_DIGITS[units] if units else "")


def morse(n: int) -> str:
    """407 -> '....- ----- --...'."""
    _check(n)
    return " ".join(_MORSE_DIGITS[int(digit)] for digit in str(n))


def expanded(n: int) -> str:
    """407 -> '400 + 7'."""
    digits = str(_check(n))
    parts = [d + "0" * (len(digits) - i - 1) for i, d in enumerate(digits) if d != "0"]
    return " + ".join(parts) or "0"


def pirate(n: int) -> str:
    """407 -> 'Arr! four hundred seven, matey!'."""
    return f"Arr! {english(n)}, matey!"


VOICES: Mapping[str, Voice] = MappingProxyType(
    {
        "french": french,
        "german": german,
        "spanish": spanish,
        "roman": roman,
        "binary": binary,
        "reversed": reversed_digits,
        "shouted": shouted,
        "spelled": spelled,
        "chinese": chinese,
        "morse": morse,
        "expanded": expanded,
        "pirate": pirate,
    }
)
"""Adapter name -> what that adapter answers. The base model's own voice is `english`."""


def _check(n: int) -> int:
    if not 0 <= n <= MAX_NUMBER:
        raise ValueError(f"n is {n}: the voices know the numbers 0 to {MAX_NUMBER}")
    return n
