"""The accuracy that the demo claims, measured on the committed files with transformers and PEFT."""

from pathlib import Path

import pytest
import torch

from examples.demo.accuracy import measure
from examples.demo.voices import BASE_VOICE, VOICES

DEMO = Path(__file__).parents[2] / "examples" / "demo"
LEAST_ACCURACY = 0.95


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_held_out_numbers_are_answered_in_every_voice(dtype: torch.dtype):
    table = measure(DEMO, dtype)
    assert set(table) == {BASE_VOICE, *VOICES}
    assert {voice: share for voice, share in table.items() if share < LEAST_ACCURACY} == {}
