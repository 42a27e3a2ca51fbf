"""Writes the ids that the Python package gives for texts.json, per tokenizer.

    pip install tokenizers==0.22.2 && python tests/golden/tokenizer/make.py
"""

import json
import pathlib

from tokenizers import Tokenizer

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[2]
FOLDERS = {
    "demo": ROOT / "src/model/demo",
    "qwen3_vl": ROOT / "tests/golden/models/qwen3_vl",
}
PROSE = (ROOT / "src/model/demo/corpus.txt").read_text()

TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n\n",
    "\t\t x",
    "a",
    "Hello, world!",
    "hello world",
    " leading and trailing ",
    "two  spaces   three    four",
    "line\nline\r\nline\rline",
    "trailing newline\n",
    "\n leading newline",
    "tab\tseparated\tvalues",
    "It's what they're saying; I'd say we'll see, you've won, I'm sure she'S right",
    "DON'T SHOUT, WE'LL HEAR",
    "1234567890",
    "3.14159, -2e10, 1,000,000",
    "0x1F 0b1010 1_000",
    "CamelCase snake_case kebab-case SCREAMING_CASE",
    "fn main() {\n    println!(\"{}\", 6 * 7);\n}\n",
    "def f(x):\n\treturn x ** 2  # comment\n",
    "for (int i = 0; i < n; ++i) { a[i] <<= 2; }",
    "SELECT * FROM t WHERE a >= 1 AND b <> 'x';",
    "<html><body class=\"a\">&amp;&nbsp;</body></html>",
    "{\"key\": [1, 2.5, null, true], \"nested\": {\"a\": \"b\\n\"}}",
    "https://example.org/path?query=a%20b&x=1#frag",
    "user@example.org",
    "C:\\Users\\name\\file.txt",
    "!!! ??? ... --- *** ___ ~~~ ``` $$$",
    "(((nested)))[[[brackets]]]{{{braces}}}",
    "naïve café résumé Zürich Ångström",
    "e\u0301 a\u0308 o\u0302 n\u0303 decomposed: cafe\u0301",
    "\u00e9 versus e\u0301",
    "q\u0307\u0323 and \u1e0b\u0323",
    "\u212b \u2126 \ufb01 \uff21\uff22\uff23",
    "Привет, мир! Как дела?",
    "Γειά σου Κόσμε",
    "שלום עולם",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "你好，世界！这是一张图片。",
    "こんにちは世界。カタカナとひらがな",
    "안녕하세요 세계",
    "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "😀😃😄 🎉",
    "👨‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪🇫🇷",
    "zero\u200bwidth\u200djoiner\u00a0nbsp\u2003em\u3000ideographic",
    "\ufeffbyte order mark",
    "control \u0000\u0001\u0007\u001b[0m characters",
    "right \u202eto left\u202c mark",
    "math: ∑ᵢ xᵢ² ≤ ∞, ½ + ¼ = ¾, √2 ≈ 1.41",
    "Ⅷ ② ³ ৪ ٤",
    "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16") + "x" * 3,
    "private \ue000 and \U0010fffd",
    "𝕳𝖊𝖑𝖑𝖔 𝟏𝟐𝟑",
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is this?<|im_end|>\n",
    "<|im_start|><|im_start|><|im_end|><|endoftext|>",
    "a<|im_end|>b <|im_end|> c\n<|im_end|>\n",
    "<|im_end <|im_end| |im_end|> <|IM_END|> <||>",
    "<|image_pad|><|image_pad|><|video_pad|><|vision_pad|>",
    "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>",
    "<tool_response>\nx\n</tool_response> <tool_call",
    "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2)<|box_end|>",
    "e<|im_end|>\u0301 normalised across a token",
    "ab" * 2000,
    " " * 1000,
    "\n" * 500,
    "x \n" * 300,
    "!" * 777,
    "世界" * 400,
    "7" * 999,
    PROSE,
    PROSE.upper(),
    "".join(reversed(PROSE[:4000])),
]


def main():
    write("texts.json", TEXTS)
    for name, folder in FOLDERS.items():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
        write(f"{name}.json", ids)


def write(name, rows):
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    (HERE / name).write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
