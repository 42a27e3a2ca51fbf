"""Random chats: texts, images, turns, tools, roles, salts, adapters and sampling."""

import copy
import json
import random

import pictures

WORDS = (
    "the river went past old stone houses and a quiet green boat carried bread to the market "
    "describe this picture in detail compare two images tell me what is different helpful "
    "naïve café 東京 мир 🙂 x=1; 3.14 don't I'll [end] <b>bold</b> C:\\path \"quoted\" 100% #tag"
).split(" ")
GAPS = [" "] * 12 + ["  ", "\n", "\n\n", "\t"]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather at a place, in °C.",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["place"],
            },
        },
    },
    {"type": "function", "function": {"name": "clock", "description": "Tells the time."}},
]
# A chat that has grown beyond it is left.
PROMPT_TOKENS_MAX = 1_400


class Chats:
    """An endless source of requests; answered ones may go on with another turn."""

    def __init__(self, seed, models, images_max=3, side_max=420):
        self.chance = random.Random(seed)
        self.models = models
        self.images_max = images_max
        self.side_max = side_max
        self.pictures = [self.picture() for _ in range(20)]
        self.open = []
        self.last = None

    def next(self):
        """The body of a new chat or of one more turn, and what is special about it."""
        if self.open and self.chance.random() < 0.55:
            chat = copy.deepcopy(self.chance.choice(self.open[-40:]))
            self.add_turn(chat["messages"])
        else:
            chat = self.opened()
        self.last = chat
        return {**copy.deepcopy(chat), **self.sampling()}

    def answered(self, message, prompt_tokens):
        """Takes in the answer to the last body."""
        if prompt_tokens <= PROMPT_TOKENS_MAX:
            # With tools the engine shows special tokens, and a random model says any of them.
            words = (message or ".").replace("<|", "<")
            turn = {"role": "assistant", "content": words}
            self.open.append({**self.last, "messages": self.last["messages"] + [turn]})

    def opened(self):
        """A new chat, without sampling."""
        chance = self.chance
        messages = []
        if chance.random() < 0.5:
            role = chance.choice(["system", "developer"])
            messages.append({"role": role, "content": self.system()})
        messages.append({"role": "user", "content": self.content()})
        chat = {"model": chance.choice(self.models), "messages": messages}
        salt = chance.choice([None, None, None, "a", "b"])
        if salt:
            chat["cache_salt"] = salt
        if chance.random() < 0.25:
            chat["tools"] = TOOLS[: chance.randint(1, 2)]
        if chance.random() < 0.1:
            chat["chat_template_kwargs"] = {"add_vision_id": True}
        return chat

    def add_turn(self, messages):
        """One more user turn, sometimes behind a tool's answer or a developer's remark."""
        chance = self.chance
        if chance.random() < 0.15:
            call = {"name": "weather", "arguments": json.dumps({"place": self.words(2), "days": 2})}
            calls = [{"id": "call_1", "type": "function", "function": call}]
            messages.append({"role": "assistant", "content": None, "tool_calls": calls})
            answer = self.words(6)
            content = chance.choice([answer, [pictures.text(answer), pictures.text("more")]])
            messages.append({"role": "tool", "tool_call_id": "call_1", "content": content})
        if chance.random() < 0.1:
            role = chance.choice(["developer", "developer", "system"])
            messages.append({"role": role, "content": self.system()})
        messages.append({"role": "user", "content": self.content()})

    def content(self):
        """A text, or texts and images in any order."""
        chance = self.chance
        images = chance.choice([0, 0] + list(range(self.images_max + 1)))
        if images == 0 and chance.random() < 0.7:
            return self.words(chance.randint(1, 40))
        parts = [pictures.text(self.words(chance.randint(1, 30)))]
        if chance.random() < 0.3:
            parts.append(pictures.text(self.words(5)))
        for _ in range(images):
            image = pictures.part(self.chosen_picture())
            if chance.random() < 0.1:
                image["image_url"]["detail"] = "low"
            parts.insert(chance.randrange(len(parts) + 1), image)
        return parts

    def system(self):
        words = self.words(self.chance.randint(1, 25))
        return self.chance.choice([words, [pictures.text(words)]])

    def words(self, count):
        return "".join(self.chance.choice(WORDS) + self.chance.choice(GAPS) for _ in range(count))

    def chosen_picture(self):
        """One of those sent before, or a new one."""
        if self.chance.random() < 0.3:
            self.pictures[self.chance.randrange(len(self.pictures))] = self.picture()
        return self.chance.choice(self.pictures)

    def picture(self):
        chance = self.chance
        sides = chance.randint(16, self.side_max), chance.randint(16, self.side_max)
        return pictures.picture(*sides, chance.random(), chance.choice(list(pictures.TYPES)))

    def sampling(self):
        """What does not change the prompt."""
        chance = self.chance
        options = {"max_tokens": chance.randint(1, 24), "temperature": 0}
        if chance.random() < 0.2:
            options |= {"temperature": 1, "seed": chance.randrange(1_000)}
        if chance.random() < 0.12:
            options |= {"n": 2, "temperature": 1}
        if chance.random() < 0.15:
            options["stop"] = chance.choice(["e", ["the", "\n"]])
        if chance.random() < 0.3:
            options |= {"stream": True, "stream_options": {"include_usage": True}}
        return options
