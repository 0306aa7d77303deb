"""Everything a stranger may send: a typed error with its reason, and running streams go on."""

from __future__ import annotations

import json
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

import chorale
from chorale import errors
from chorale.status import from_rpc_error
from chorale.v1 import (
    admission_pb2,
    admission_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
)
from tests.e2e.conftest import ADAPTERS, NAMES
from tests.helpers.up import ChoraleUp
from tests.helpers.up import chorale as chorale_command
from tests.helpers.waiting import PATIENCE_S, until

GOOD = ADAPTERS / NAMES[0]


class RunningStreams:
    """One stream after the other on a thread, each of which must come to the very same end."""

    def __init__(self, client: chorale.Client) -> None:
        self._client = client
        self._ending = False
        self._error: BaseException | None = None
        self.num_events = 0
        self._whole = self._complete()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Raises: what ended a stream."""
        self._ending = True
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive() and self._error is None, self._error

    def check(self) -> None:
        """The streams are well and go on."""
        seen = self.num_events
        until(lambda: self.num_events >= seen + 2 or self._error is not None, every_s=0.001)
        assert self._error is None, self._error

    def _complete(self) -> list[int]:
        tokens: list[int] = []
        for event in self._client.generate("5 =", model=NAMES[0], max_tokens=200, ignore_eos=True):
            tokens += getattr(event, "token_ids", [])
            self.num_events += 1
            # A pause, so that it is there at all times and yet leaves the others the processor.
            time.sleep(0.002)
        return tokens

    def _run(self) -> None:
        try:
            while not self._ending:
                assert self._complete() == self._whole and len(self._whole) == 200
        except BaseException as error:
            self._error = error


@pytest.fixture(scope="module")
def running_streams(up: ChoraleUp) -> Iterator[RunningStreams]:
    with chorale.Client(up.grpc_address) as client:
        streams = RunningStreams(client)
        yield streams
        streams.close()


@pytest.fixture(autouse=True)
def others_go_on(running_streams: RunningStreams) -> Iterator[None]:
    """Streams run beside each test, and are not disturbed."""
    running_streams.check()
    yield
    running_streams.check()


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"prompt": "1 =", "model": "nobody"}, errors.NotFoundError, "MODEL_NOT_FOUND"),
        ({"prompt": "1 =", "model": "a" * 9000}, errors.ChoraleError, None),
        ({"prompt": ""}, errors.InvalidArgumentError, "PROMPT_EMPTY"),
        ({"prompt_token_ids": []}, errors.InvalidArgumentError, "PROMPT_EMPTY"),
        ({"prompt_token_ids": [1, 10**6]}, errors.InvalidArgumentError, None),
        ({"prompt": "1 " * 5000}, errors.InvalidArgumentError, "PROMPT_TOO_LONG"),
        ({"prompt": "1 =", "max_tokens": 5000}, errors.InvalidArgumentError, "CONTEXT_EXCEEDED"),
        ({"prompt": "1 =", "max_tokens": 0}, errors.InvalidArgumentError, None),
        ({"prompt": "1 =", "temperature": -1.0}, errors.InvalidArgumentError, None),
        ({"prompt": "1 =", "temperature": float("nan")}, errors.InvalidArgumentError, None),
        ({"prompt": "1 =", "top_p": 0.0}, errors.InvalidArgumentError, None),
        ({"prompt": "1 =", "min_p": 1.5}, errors.InvalidArgumentError, None),
        ({"prompt": "1 =", "presence_penalty": 3.0}, errors.InvalidArgumentError, None),
        ({"prompt": "1 =", "logprobs": 21}, errors.InvalidArgumentError, None),
        ({"prompt": "1 =", "stop": [""]}, errors.InvalidArgumentError, None),
        ({"prompt": "1 =", "stop_token_ids": [10**6]}, errors.InvalidArgumentError, None),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_requests(
    client: chorale.Client,
    options: dict[str, object],
    error: type[errors.ChoraleError],
    reason: str | None,
) -> None:
    with pytest.raises(error) as raised:
        client.complete(**options)  # pyright: ignore[reportArgumentType]
    assert raised.value.reason not in ("", "UNTYPED", "INTERNAL")
    assert len(raised.value.message) < 2000
    if reason:
        assert raised.value.reason == reason


def test_deadline(client: chorale.Client) -> None:
    """Which it is depends on whether the engine has measured yet how long 1,000 tokens take, and on
    whose clock is the first: the client's own knows no reason."""
    late = (errors.DeadlineExceededError, errors.ResourceExhaustedError)
    with pytest.raises(late) as raised:
        client.complete("1 =", max_tokens=1000, ignore_eos=True, timeout=0.15)
    assert raised.value.reason in ("DEADLINE_EXCEEDED", "DEADLINE_HOPELESS", "UNTYPED")
    is_late = isinstance(raised.value, errors.DeadlineExceededError)
    assert is_late or raised.value.reason == "DEADLINE_HOPELESS"


def test_objective_out_of_reach(client: chorale.Client) -> None:
    with pytest.raises(errors.ResourceExhaustedError) as raised:
        client.complete("1 = " * 100, ttft_slo=0.0001)
    assert raised.value.reason in ("TTFT_SLO_MISSED", "DEADLINE_HOPELESS")
    assert raised.value.retry_after_s


def edit_weights(path: Path, edit: Callable[[bytearray], bytes | bytearray]) -> None:
    file = path / "adapter_model.safetensors"
    file.write_bytes(edit(bytearray(file.read_bytes())))


def edit_config(path: Path, **changes: object) -> None:
    file = path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def with_nan(data: bytearray) -> bytearray:
    (header,) = struct.unpack("<Q", data[:8])
    size = 2 if b'"BF16"' in data[: 8 + header] or b'"F16"' in data[: 8 + header] else 4
    data[8 + header : 8 + header + size] = b"\xff" * size
    return data


def with_shape(path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    file = path / "adapter_model.safetensors"
    try:
        tensors = load_file(file)
    except (TypeError, KeyError):  # bfloat16, which numpy does not know
        import torch
        from safetensors.torch import load_file as load_torch
        from safetensors.torch import save_file as save_torch

        loaded = load_torch(file)
        name = next(key for key in loaded if "lora_A" in key)
        rows, columns = loaded[name].shape
        loaded[name] = torch.zeros(rows, columns + 8, dtype=loaded[name].dtype)
        save_torch(loaded, file)
        return
    name = next(key for key in tensors if "lora_A" in key)
    rows, columns = tensors[name].shape
    tensors[name] = tensors[name].copy().repeat(2, axis=1)[:, : columns + 8]
    save_file(tensors, file)


def only_pickle(path: Path) -> None:
    (path / "adapter_model.safetensors").unlink()
    (path / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")


def pickle_in_disguise(path: Path) -> None:
    (path / "adapter_model.safetensors").write_bytes(b"PK\x03\x04" + b"\0" * 200)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: edit_weights(p, lambda data: data[: len(data) // 2]),
        lambda p: edit_weights(p, lambda data: data + b"extra"),
        lambda p: edit_weights(p, lambda _: struct.pack("<Q", 1 << 60) + b"{}"),
        lambda p: edit_weights(p, lambda _: b""),
        lambda p: edit_weights(p, with_nan),
        with_shape,
        only_pickle,
        pickle_in_disguise,
        lambda p: edit_config(p, base_model_name_or_path="meta-llama/Llama-3.1-8B"),
        lambda p: edit_config(p, use_dora=True),
        lambda p: edit_config(p, modules_to_save=["lm_head"]),
        lambda p: edit_config(p, r=100000),
        lambda p: edit_config(p, target_modules=["nothing"]),
        lambda p: (p / "adapter_config.json").write_text("{" * 100000),
        lambda p: (p / "adapter_config.json").unlink(),
    ],
)
def test_adapters(
    client: chorale.Client, adapter_root: Path, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    path = adapter_root / f"bad-{tmp_path.name}"
    shutil.copytree(GOOD, path)
    spoil(path)
    before = {adapter.name for adapter in client.adapters.list()}
    with pytest.raises(errors.ChoraleError) as raised:
        client.adapters.register("bad", str(path))
    assert raised.value.reason not in ("", "UNTYPED", "INTERNAL")
    assert {adapter.name for adapter in client.adapters.list()} == before


@pytest.mark.parametrize(
    "escape", ["/etc", "{root}/../../../etc", "relative/path", "link", "s3://x/y"]
)
def test_source_escapes(client: chorale.Client, adapter_root: Path, escape: str) -> None:
    if escape == "link":
        link = adapter_root / "escaping-link"
        if not link.is_symlink():
            link.symlink_to("/etc")
        escape = str(link)
    with pytest.raises(errors.ChoraleError) as raised:
        client.adapters.register("bad", escape.format(root=adapter_root))
    assert raised.value.reason not in ("", "UNTYPED", "INTERNAL")
    assert isinstance(raised.value, errors.PermissionDeniedError | errors.InvalidArgumentError)


def test_an_adapter_that_changed_since_registration(
    client: chorale.Client, adapter_root: Path
) -> None:
    path = adapter_root / "changing"
    if not path.exists():
        shutil.copytree(ADAPTERS / NAMES[1], path)
    edit_config(path, lora_alpha=3)
    client.adapters.register("changing", str(path))
    edit_config(path, lora_alpha=5)
    with pytest.raises(errors.FailedPreconditionError) as raised:
        client.complete("1 =", model="changing")
    assert "version" in raised.value.message
    client.adapters.remove("changing")


def test_tickets(up: ChoraleUp) -> None:
    with grpc.insecure_channel(up.grpc_address) as gateway:
        admit = admission_pb2_grpc.AdmissionServiceStub(gateway).Admit

        def admitted() -> admission_pb2.AdmitResponse:
            return admit(admission_pb2.AdmitRequest(model=NAMES[0]))

        with grpc.insecure_channel(admitted().endpoint) as data_plane:
            generate = inference_pb2_grpc.InferenceServiceStub(data_plane).Generate

            def outcome(ticket: bytes) -> str:
                request = inference_pb2.GenerateRequest(prompt="1 =", ticket=ticket)
                try:
                    events = list(generate(request))
                except grpc.RpcError as error:
                    translated = from_rpc_error(error)
                    assert isinstance(translated, errors.UnauthenticatedError)
                    return translated.reason
                assert events[-1].HasField("finished")
                return "served"

            good = admitted().ticket
            assert outcome(good) == "served"
            assert outcome(good) == "TICKET_USED"
            assert outcome(b"") == "TICKET_MISSING"
            assert outcome(b"nonsense") in ("TICKET_MALFORMED", "TICKET_FORGED")
            forged = admission_pb2.SignedTicket.FromString(admitted().ticket)
            claims = admission_pb2.TicketClaims.FromString(forged.claims)
            claims.adapter_digest = "0" * 64
            forged.claims = claims.SerializeToString()
            assert outcome(forged.SerializeToString()) == "TICKET_FORGED"


def test_a_pool_too_small_for_one_sequence(tmp_path: Path) -> None:
    done = chorale_command(
        "up", "--pool-bytes", "100000", "--data-dir", str(tmp_path), "--grpc-port", "0",
        "--http-port", "0",
    )  # fmt: skip
    assert done.returncode not in (0, 1)
    assert "POOL_TOO_SMALL" in done.stderr and "--max-context-tokens" in done.stderr
    assert done.stdout == ""
