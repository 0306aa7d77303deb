"""Chats with tools at the data plane's door."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as BackendTokenizer
from transformers import PreTrainedTokenizerFast

from chorale.errors import ChoraleError, FailedPreconditionError, InvalidArgumentError
from chorale.tool_calls import find_tool_calls
from chorale.v1 import inference_pb2 as pb
from dataplane.rpc.chat import MAX_ARGUMENTS_CHARACTERS, messages_of, tools_of
from dataplane.text.tokenizer import Tokenizer, load_tokenizer
from tests.dataplane.rpc.conftest import StartRig
from tests.helpers.constraints import MODEL, constraint, demo_vocabulary, text_of
from tests.helpers.engine import Rig
from tests.helpers.fake_engine import FakeScript
from tests.helpers.models import make_model, save_model
from tests.helpers.rig import BACKEND, TOKENIZER, EngineLog, ids_of
from tests.helpers.rig import text_of as rig_text
from tests.helpers.tokenizers import CHAT_TEMPLATE

CITY = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Rome", "Bonn"]},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TEMPLATE = (
    "{# <tool_call> arguments #}{% if tools %}{{ tools | tojson }}{% endif %}" + CHAT_TEMPLATE
)
HERMES = Tokenizer(
    PreTrainedTokenizerFast(
        tokenizer_object=BACKEND, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )
)


def tool(name: str = "f", **function: Any) -> str:
    return json.dumps({"type": "function", "function": {"name": name, **function}})


def request(*tools: str, sampling: Any = None, **chat: Any) -> pb.GenerateRequest:
    messages = chat.pop("messages", [{"role": "user", "content": "1"}])
    return pb.GenerateRequest(
        chat=pb.Chat(messages=messages, tools=tools, **chat), sampling=sampling
    )


async def test_the_format_is_told_and_the_engine_held_to_it(
    start_rig: StartRig, engine_log: EngineLog
) -> None:
    script = FakeScript(tokens=ids_of("hey"), ready={"max_context_tokens": 400})
    async with start_rig(script, tokenizer=HERMES) as rig:
        chat = request(tool()).chat
        events = await rig.generate(chat=chat, return_prompt_token_ids=True)
        assert events[0].accepted.tool_call_format == "hermes"
        assert '"name": "f"' in HERMES.decode(list(events[0].accepted.prompt_token_ids))
        chat.tool_call_required = True
        await rig.generate(chat=chat)
        del chat.tools[:]
        chat.tool_call_required = False
        events = await rig.generate(chat=chat)
        assert events[0].accepted.tool_call_format == ""
        grammars = [each["sampling"]["grammar"] for each in await engine_log.wait_for("Submit", 3)]
        assert [bool(each) for each in grammars] == [False, True, False]
        assert "tool_0" in grammars[1]


async def test_special_marks_are_text_where_there_are_tools(start_rig: StartRig) -> None:
    backend = BackendTokenizer.from_str(BACKEND.to_str())
    backend.add_special_tokens(["[TOOL_CALLS]"])
    mark = backend.token_to_id("[TOOL_CALLS]")
    tokenizer = Tokenizer(
        PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=TEMPLATE), "mistral"
    )
    ready = {"max_context_tokens": 400, "vocab_size": mark + 1}
    script = FakeScript(tokens=[mark, *ids_of("hey")], ready=ready)
    async with start_rig(script, tokenizer=tokenizer) as rig:
        asked = request(tool())
        assert rig_text(await rig.generate(chat=asked.chat)).startswith("[TOOL_CALLS]hey")
        # As the one that goes on elsewhere has it.
        rest = await rig.generate(chat=asked.chat, generated_token_ids=[mark])
        assert rig_text(rest).startswith("hey")
        assert rig_text(await rig.generate(chat=request().chat)).startswith("hey")


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (request(tool_name="f"), "chat.tool_name"),
        (request(single_tool_call=True), "chat.single_tool_call"),
        (request(tool(), tool_name="g"), "chat.tool_name"),
        (request(tool(), sampling={"constraint": constraint(regex="a")}), "sampling.constraint"),
        (request("x"), "chat.tools[0]"),
        (request("[]"), "chat.tools[0]"),
        (request(tool(), "[" * 100_000), "chat.tools[1]"),
        (request(tool(parameters={"default": [[[]] * 2] * 2})), ""),
        (request(tool(description="x" * 2**17), tool("b", description="x" * 2**17)), "chat.tools"),
        (request(*[tool(f"f{at}") for at in range(129)]), "chat.tools"),
        (request(tool(), tool()), "chat.tools[1].function.name"),
        (request(tool("a b")), "chat.tools[0].function.name"),
        (request(tool("a\n")), "chat.tools[0].function.name"),
        (request(tool("")), "chat.tools[0].function.name"),
        (request(tool(parameters={"type": "string"})), "chat.tools[0].function.parameters"),
        (request(tool(parameters=[])), "chat.tools[0].function.parameters"),
        (request(tool(strict="yes")), "chat.tools[0].function.strict"),
        (request(tool(description=1)), "chat.tools[0].function.description"),
        (request(tool(returns={})), "chat.tools[0].function"),
        (request('{"type": "web_search"}'), "chat.tools[0]"),
        (
            request(tool(strict=True, parameters={"type": "object", "if": {}})),
            "chat.tools[0].function.parameters",
        ),
        (request(tool(parameters={"type": "object", "if": {}})), ""),
    ],
)
def test_tools_that_cannot_be_are_named(asked: pb.GenerateRequest, field: str) -> None:
    if not field:
        assert tools_of(asked, HERMES)
        return
    with pytest.raises(InvalidArgumentError) as error:
        tools_of(asked, HERMES)
    assert error.value.metadata["field"] == field and field in error.value.message


def test_depth_is_bounded() -> None:
    nested: Any = {}
    for _ in range(70):
        nested = {"x": nested}
    with pytest.raises(InvalidArgumentError, match="64 levels"):
        tools_of(request(tool(parameters={"default": nested})), HERMES)


def test_a_model_without_a_format_takes_no_tools() -> None:
    with pytest.raises(FailedPreconditionError, match="--tool-call-format") as error:
        tools_of(request(tool()), TOKENIZER)
    assert error.value.reason == "TOOLS_UNSUPPORTED"
    assert tools_of(request(), TOKENIZER) is None


def call(arguments: str = '{"a": 1}', name: str = "f") -> pb.ToolCall:
    return pb.ToolCall(id="c1", name=name, arguments=arguments)


def test_messages_go_to_the_template_as_transformers_has_them() -> None:
    asked = request(
        messages=[
            pb.ChatMessage(role="assistant", tool_calls=[call()]),
            pb.ChatMessage(role="tool", content="7", tool_call_id="c1", name="f"),
        ]
    )
    function = {"name": "f", "arguments": {"a": 1}}
    assert messages_of(asked.chat) == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "7", "tool_call_id": "c1", "name": "f"},
    ]


def test_what_templates_look_for_and_clients_do_not_tell() -> None:
    asked = request(
        tool("now", strict=False),
        messages=[
            pb.ChatMessage(role="assistant", tool_calls=[call()]),
            pb.ChatMessage(role="tool", content="7", tool_call_id="c1"),
            pb.ChatMessage(role="tool", content="8", tool_call_id="c2"),
        ],
    )
    assert [each.get("name") for each in messages_of(asked.chat)] == [None, "f", None]
    found = tools_of(asked, HERMES)
    parameters = {"type": "object", "properties": {}}
    function = {"name": "now", "parameters": parameters}
    assert found and found.shown == [{"type": "function", "function": function}]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.ChatMessage(content="x"), "role"),
        (pb.ChatMessage(role="user", tool_calls=[call()]), "tool_calls"),
        (pb.ChatMessage(role="assistant", tool_calls=[call()] * 129), "tool_calls"),
        (pb.ChatMessage(role="assistant", tool_calls=[call("[1]")]), "tool_calls[0].arguments"),
        (pb.ChatMessage(role="assistant", tool_calls=[call("{")]), "tool_calls[0].arguments"),
        (pb.ChatMessage(role="assistant", tool_calls=[call(name="")]), "tool_calls[0].name"),
        (pb.ChatMessage(role="user", tool_call_id="c"), "tool_call_id"),
        (pb.ChatMessage(role="user", name="bob"), "name"),
    ],
)
def test_messages_that_cannot_be_are_named(message: pb.ChatMessage, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        messages_of(request(messages=[message]).chat)
    assert error.value.metadata["field"] == f"chat.messages[0].{field}"


def test_arguments_of_all_messages_are_bounded() -> None:
    big = call(json.dumps({"a": "x" * (MAX_ARGUMENTS_CHARACTERS // 2)}))
    message = pb.ChatMessage(role="assistant", tool_calls=[big])
    assert messages_of(request(messages=[message]).chat)
    with pytest.raises(ChoraleError, match="at most"):
        messages_of(request(messages=[message, message]).chat)


def test_random_weights_call_as_they_are_told(tmp_path: Path) -> None:
    """Through the real engine: whatever is drawn parses, and matches its schema."""
    model = make_model("llama", vocab_size=512, max_position_embeddings=1024, eos_token_id=1)
    rig = Rig(save_model(model, tmp_path), max_batch_tokens=1024)
    rig.engine.use_vocabulary(demo_vocabulary())
    tokenizer = load_tokenizer(MODEL)
    city = tool("city", parameters=CITY, strict=True)
    choices: list[dict[str, Any]] = [
        {"tool_call_required": True, "single_tool_call": True},
        {"tool_name": "city"},
        {"tool_name": "now"},
    ]
    asked: dict[int, dict[str, Any]] = {}
    for choice in choices:
        for seed in range(2):
            chat = request(city, tool("now"), **choice)
            found = tools_of(chat, tokenizer)
            assert found is not None and found.grammar is not None
            prompt = tokenizer.encode_chat(
                messages_of(chat.chat), max_tokens=999, tools=found.shown
            )
            handle = len(asked)
            asked[handle] = choice
            sampling = {"temperature": 1.5, "seed": seed, "max_tokens": 200}
            rig.submit(handle, prompt, grammar=found.grammar.text, **sampling)
    rig.run()
    for handle, choice in asked.items():
        content, calls = find_tool_calls(text_of(rig.tokens[handle]), "hermes", {"city", "now"})
        assert not content and len(calls) == 1, text_of(rig.tokens[handle])
        name, arguments = calls[0].name, json.loads(calls[0].arguments)
        assert name == choice.get("tool_name", name)
        if name == "now":
            assert arguments == {}
        else:
            assert arguments["city"] in ("Rome", "Bonn") and type(arguments["days"]) is int
            assert 0 <= arguments["days"] <= 9
