"""`chorale generate`: one completion, streamed to stdout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from controlplane.cli import output, views
from controlplane.cli.connection import connect
from controlplane.cli.errors import UsageError
from controlplane.cli.failures import reported
from controlplane.cli.options import DEFAULT_ADDRESS, Address, AsJson, SourceToken

if TYPE_CHECKING:
    from chorale.client import Generation
    from chorale.requests import GenerateOptions

MAX_PROMPT_BYTES = 8 << 20
MAX_CONSTRAINT_BYTES = 1 << 20  # the server takes less


def generate(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The text to continue; '-' reads it from stdin.")
    ],
    adapter: Annotated[
        str,
        typer.Option(help="Adapter, NAME@VERSION, alias or base model; left out, the base model."),
    ] = "",
    chat: Annotated[
        bool, typer.Option("--chat", help="Send the prompt as a user's message, by the template.")
    ] = False,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens.")] = None,
    min_tokens: Annotated[int | None, typer.Option(min=0, help="No end before this.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="0 keeps all.")] = None,
    top_p: Annotated[float | None, typer.Option(help="In (0, 1].")] = None,
    min_p: Annotated[float | None, typer.Option(help="In [0, 1].")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="1 is none.")] = None,
    presence_penalty: Annotated[float | None, typer.Option(help="0 is none.")] = None,
    frequency_penalty: Annotated[float | None, typer.Option(help="0 is none.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Same seed, same tokens.")] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", help="End before this text. Repeatable."),
    ] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after it.")] = False,
    logprobs: Annotated[
        int | None,
        typer.Option(min=0, max=20, help="Top tokens; with --json."),
    ] = None,
    prompt_logprobs: Annotated[
        int | None,
        typer.Option(min=0, max=20, help="The prompt's tokens and top ones; with --json."),
    ] = None,
    json_schema: Annotated[
        str, typer.Option(help="The answer is JSON of this schema: a file, or the JSON itself.")
    ] = "",
    json_object: Annotated[
        bool, typer.Option("--json-object", help="The answer is a JSON object.")
    ] = False,
    regex: Annotated[str, typer.Option(help="The whole answer matches it.")] = "",
    choice: Annotated[
        list[str] | None,
        typer.Option("--choice", help="The answer is one of these texts. Repeatable."),
    ] = None,
    grammar: Annotated[
        str, typer.Option(help="The answer follows it: a file in Lark, or the grammar itself.")
    ] = "",
    logit_bias: Annotated[
        list[str] | None,
        typer.Option("--logit-bias", help="TOKEN_ID=BIAS, -100 to 100. Repeatable."),
    ] = None,
    ttft_slo: Annotated[
        float | None,
        typer.Option(
            "--ttft-slo", min=0.001, help="Fail as soon as the first token cannot come in time."
        ),
    ] = None,
    routing_key: Annotated[
        str, typer.Option(help="A user's id: equal ones get the same version of an alias.")
    ] = "",
    cache_salt: Annotated[
        str, typer.Option(help="Only requests of the same salt find what is cached of the prompt.")
    ] = "",
    source_token: SourceToken = "",
    tenant: Annotated[str, typer.Option(envvar="CHORALE_TENANT", help="Counted for it.")] = "",
    timeout: Annotated[
        float, typer.Option(envvar="CHORALE_TIMEOUT", min=0.001, help="Seconds for the whole.")
    ] = 300.0,
    address: Address = DEFAULT_ADDRESS,
    as_json: AsJson = False,
) -> None:
    """Generate a completion; its text streams to stdout as it comes.

    Sampling options that are left out take the server's defaults: greedy, to the context's end.
    """
    with reported(as_json=as_json, address=address):
        for name, value in (("--logprobs", logprobs), ("--prompt-logprobs", prompt_logprobs)):
            if value is not None and not as_json:
                raise UsageError("OPTION_CONFLICT", f"{name} is shown only with --json: give both")
        text = _prompt(prompt)
        options: GenerateOptions = {
            "model": adapter,
            "max_tokens": max_tokens,
            "min_tokens": min_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "seed": seed,
            "stop": stop or [],
            "ignore_eos": ignore_eos,
            "logprobs": logprobs,
            "prompt_logprobs": prompt_logprobs,
            "json_schema": _file_or_text("--json-schema", json_schema, "{"),
            "json_object": json_object,
            "regex": regex or None,
            "choices": choice or None,
            "grammar": _file_or_text("--grammar", grammar, ":"),
            "logit_bias": _biases(logit_bias or []),
            "timeout": timeout,
            "ttft_slo": ttft_slo,
            "routing_key": routing_key,
            "cache_salt": cache_salt,
            "source_token": source_token,
        }
        if chat:
            options["messages"] = [{"role": "user", "content": text}]
        with (
            connect(address, tenant=tenant) as client,
            client.generate(None if chat else text, **options) as events,
        ):
            _show(events, as_json)


def install(app: typer.Typer) -> None:
    app.command("generate")(generate)


def _prompt(argument: str) -> str:
    if argument != "-":
        return argument
    data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    if len(data) > MAX_PROMPT_BYTES:
        raise UsageError(
            "PROMPT_TOO_LARGE",
            f"the prompt on stdin has more than {MAX_PROMPT_BYTES} bytes: shorten it",
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            "PROMPT_NOT_UTF8", f"the prompt on stdin is not UTF-8 (byte {error.start}): convert it"
        ) from error


def _file_or_text(option: str, given: str, sign: str) -> str | None:
    """sign: what a text has in it, and hardly any file's name."""
    if not given:
        return None
    path = Path(given)
    try:
        if sign in given and ("\n" in given or not path.is_file()):
            return given
        with path.open("rb") as file:
            data = file.read(MAX_CONSTRAINT_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UsageError(
            "FILE_UNREADABLE", f"{option} {given[:200]!r} is no file that can be read: {error}"
        ) from error
    if len(data) > MAX_CONSTRAINT_BYTES:
        raise UsageError(
            "FILE_TOO_LARGE",
            f"{option} {given[:200]!r}: the file has more than {MAX_CONSTRAINT_BYTES} bytes, the"
            " most that a constraint may have",
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            "FILE_NOT_UTF8",
            f"{option} {given[:200]!r}: the file is not UTF-8 (byte {error.start}): convert it",
        ) from error


def _biases(given: list[str]) -> dict[int, float]:
    biases: dict[int, float] = {}
    for each in given:
        token_id, equals, bias = each.partition("=")
        try:
            biases[int(token_id)] = float(bias)
        except ValueError:
            equals = ""
        if not equals:
            raise UsageError(
                "LOGIT_BIAS_INVALID", f"--logit-bias {each[:100]!r} is not TOKEN_ID=BIAS"
            )
    return biases


def _show(events: Generation, as_json: bool) -> None:
    from chorale.events import completion_of

    if as_json:
        output.print_json(views.completion(completion_of(events)))
        return
    wrote = False
    try:
        for event in events:
            if event.text:
                sys.stdout.write(output.for_terminal(event.text))
                sys.stdout.flush()
                wrote = True
    finally:
        if wrote:  # what came before an error stands on a line of its own
            print(flush=True)
