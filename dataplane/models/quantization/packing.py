"""From the words and bytes of checkpoints to the codes of kernels.quantized.matrix.

Words are little-endian: their first byte holds their lowest bits, so that most layouts are bytes in
another order.
"""

from __future__ import annotations

import torch

_AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]
"""Which four bits of a word, counted from the lowest, each of its eight outputs has."""
_ROWS_AT_ONCE = 512


def of_words(words: torch.Tensor, num_bytes: int) -> torch.Tensor:
    """[out, words] int32 along the inputs -> [out, num_bytes] uint8; padding is cut off."""
    return words.view(torch.uint8)[:, :num_bytes].contiguous()


def of_word_rows(words: torch.Tensor) -> torch.Tensor:
    """[in / codes in a word, out] int32 -> [out, in * bits / 8] uint8."""
    rows, outputs = words.shape
    by_bytes = words.view(torch.uint8).view(rows, outputs, 4)
    return by_bytes.permute(1, 0, 2).reshape(outputs, 4 * rows)


def of_awq(words: torch.Tensor) -> torch.Tensor:
    """[in, out / 8] int32 -> [out, in / 2] uint8."""
    inputs, columns = words.shape
    codes = torch.empty((8 * columns, inputs // 2), dtype=torch.uint8)
    for start in range(0, inputs, 2 * _ROWS_AT_ONCE):
        some = awq_values(words[start : start + 2 * _ROWS_AT_ONCE])
        packed = some[0::2] | some[1::2] << 4
        codes[:, start // 2 : start // 2 + len(packed)] = packed.T
    return codes


def awq_values(words: torch.Tensor) -> torch.Tensor:
    """[n, out / 8] int32 -> [n, out] uint8, 4 bits each."""
    values = halves(words.view(torch.uint8)).view(len(words), -1, 8)
    return values[:, :, _AWQ_ORDER].reshape(len(words), -1)


def values_of(words: torch.Tensor, bits: int) -> torch.Tensor:
    """[n, words] int32 -> [n, values] uint8, of 4 or 8 bits each."""
    found = words.contiguous().view(torch.uint8)
    return halves(found) if bits == 4 else found


def halves(values: torch.Tensor) -> torch.Tensor:
    """[n, bytes] uint8 -> [n, 2 * bytes], each byte's lower half first."""
    return torch.stack((values & 15, values >> 4), -1).flatten(1)


def swapped_halves(values: torch.Tensor) -> torch.Tensor:
    """Each byte's halves the other way round, in place."""
    high = values >> 4
    return values.bitwise_left_shift_(4).bitwise_or_(high)


def unsigned(values: torch.Tensor) -> torch.Tensor:
    """int8 -> uint8 with 128 for 0, in place."""
    return values.view(torch.uint8).bitwise_xor_(128)
