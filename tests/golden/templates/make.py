"""Writes what transformers renders for conversations.json, per template.

    pip install transformers==5.15.1 jinja2==3.1.6 tokenizers==0.22.2
    python tests/golden/templates/make.py
"""

import datetime
import json
import pathlib

from transformers.utils import chat_template_utils

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[2]
TEMPLATES = {
    "demo": ROOT / "src/model/demo/chat_template.jinja",
    "qwen3_vl": ROOT / "tests/golden/models/qwen3_vl/chat_template.jinja",
    "features": HERE / "features.jinja",
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a <place> & a 'time' — \"now\" or later.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "Zürich, 東京, …"},
                "days": {"type": "integer", "minimum": 1, "default": 3},
                "scale": {"type": "number", "enum": [1.0, 0.5, 1e-7, 1e16]},
                "empty": {},
                "list": [],
            },
            "required": ["place"],
        },
    },
}
OTHER = {"type": "function", "function": {"name": "other", "parameters": {"a\tb\n": None}}}


def text(value):
    return {"type": "text", "text": value}


def user(content):
    return {"role": "user", "content": content}


def assistant(content, *calls):
    message = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = [
            {"id": f"call_{at}", "type": "function", "function": {"name": name, "arguments": value}}
            for at, (name, value) in enumerate(calls)
        ]
    return message


def tool(content, call="call_0"):
    return {"role": "tool", "tool_call_id": call, "content": content}


SYSTEM = {"role": "system", "content": "Answer in one line."}
IMAGE = {"type": "image"}
PLACES = {"place": "Zürich <&>'\"", "days": 2, "deep": {"x": [1, 2.0, None, True]}}

CONVERSATIONS = [
    {"messages": [user("Hello!")], "add_generation_prompt": True},
    {"messages": [SYSTEM, user("Hello?"), assistant("Hi."), user("Who?")]},
    {"messages": [user([text("What is this?"), IMAGE]), assistant([text("A cat.")])]},
    {
        "messages": [SYSTEM, user([IMAGE, IMAGE, text(" Compare \n")]), user([text("")])],
        "add_generation_prompt": True,
    },
    {"messages": [user("Weather?")], "tools": [WEATHER], "add_generation_prompt": True},
    {
        "messages": [
            SYSTEM,
            user("Weather in two places?"),
            assistant("", ("get_weather", PLACES), ("other", {})),
            tool("rain"),
            tool("<sun> & wind", "call_1"),
            assistant("Rain, then sun."),
            user("Thanks!"),
        ],
        "tools": [WEATHER, OTHER],
        "add_generation_prompt": True,
    },
    {
        "messages": [user("x"), assistant([], ("other", {"a": "b"})), tool("ü\n\u2028✓ 😀")],
        "tools": [OTHER],
    },
    {"messages": [user("  spaces kept?  "), assistant("<think>\nwhy\n</think>\n\nyes")]},
    {"messages": [user("日本語 🎉 e\u0301 \u202e <|im_end|> {{ 7 * 7 }} {% raw %}")]},
    {"messages": [user("Go on."), assistant("One, two")], "continue_final_message": True},
    {"messages": [user("Go on."), assistant("One, two  ")], "continue_final_message": True},
    {
        "messages": [user([text("Go"), IMAGE]), assistant([text("a"), text("b ")])],
        "continue_final_message": True,
    },
    {"messages": [user("vision ids"), user([IMAGE])], "variables": {"add_vision_id": True}},
    {"messages": [user("v")], "variables": {"custom": {"a": [True, None]}, "bos_token": "<b>"}},
    {"messages": [{"role": "tool", "content": "first"}]},
    {"messages": [{"role": "poet", "content": "?"}, user("x")]},
    {"messages": [SYSTEM, {"role": "user", "content": "s", "skip": True}, user("t\n")]},
]


class Now(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2025, 3, 9, 14, 5, 6)


def render(source, conversation):
    variables = {**SPECIAL, **conversation.get("variables", {})}
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            conversations=[conversation["messages"]],
            tools=conversation.get("tools"),
            chat_template=source,
            add_generation_prompt=conversation.get("add_generation_prompt", False),
            continue_final_message=conversation.get("continue_final_message", False),
            **variables,
        )
    except Exception as error:
        return {"error": str(error)}
    return {"text": rendered[0]}


def main():
    chat_template_utils.datetime = Now
    write("conversations.json", CONVERSATIONS)
    for name, path in TEMPLATES.items():
        source = path.read_text()
        write(f"{name}.json", [render(source, one) for one in CONVERSATIONS])


def write(name, rows):
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (HERE / name).write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
