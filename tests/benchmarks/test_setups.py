"""Each program that shares `benchmarks.cases.Setup` has all of it in its options."""

from types import ModuleType
from typing import Any

import pytest

from benchmarks import engine, peft_baseline, peft_truefoundry
from benchmarks.cases import Setup


class _BegunError(Exception):
    pass


@pytest.mark.parametrize("program", [engine, peft_baseline, peft_truefoundry])
def test_a_program_gets_as_far_as_running(
    monkeypatch: pytest.MonkeyPatch, program: ModuleType
) -> None:
    def begin(setup: Setup, *_: Any) -> None:
        assert (setup.shape_name, setup.rounds, setup.tensor_parallel) == ("tiny", 2, 1)
        raise _BegunError

    monkeypatch.setattr("sys.argv", [program.__name__, "--shape", "tiny", "--rounds", "2"])
    monkeypatch.setattr(program.process_settings, "settle", lambda: None)
    monkeypatch.setattr(program, "run", begin)
    with pytest.raises(_BegunError):
        program.main()
