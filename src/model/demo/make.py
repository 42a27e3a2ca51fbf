"""Makes the demo model's folder from corpus.txt.

    pip install tokenizers==0.22.2 && python src/model/demo/make.py

The same corpus and the same version give the same bytes. There are no weights: the demo model is
what a frontend and a mock engine need of a model, in the shape of Qwen3-VL.
"""

import json
import pathlib

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors, trainers

HERE = pathlib.Path(__file__).parent
VOCABULARY = 3072  # of the trained part; the special tokens follow
# The split of Qwen2 and its successors.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
# Added, but not special: they are part of an answer's text.
PLAIN = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]


def train():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(alphabet),
    )
    lines = (HERE / "corpus.txt").read_text().splitlines(keepends=True)
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in PLAIN])
    return tokenizer


def write(name, value, indent=2):
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    (HERE / name).write_text(text + "\n")


def main():
    tokenizer = train()
    token = tokenizer.token_to_id
    write("tokenizer.json", json.loads(tokenizer.to_str()), indent=None)
    decoder = tokenizer.get_added_tokens_decoder()
    flags = ["content", "lstrip", "normalized", "rstrip", "single_word", "special"]
    write(
        "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(id): {flag: getattr(added, flag) for flag in flags}
                for id, added in sorted(decoder.items())
            },
            "additional_special_tokens": SPECIAL[1:],
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 32768,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "unk_token": None,
        },
    )
    write(
        "config.json",
        {
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "model_type": "qwen3_vl",
            "image_token_id": token("<|image_pad|>"),
            "video_token_id": token("<|video_pad|>"),
            "vision_start_token_id": token("<|vision_start|>"),
            "vision_end_token_id": token("<|vision_end|>"),
            "text_config": {
                "model_type": "qwen3_vl_text",
                "bos_token_id": token("<|endoftext|>"),
                "eos_token_id": token("<|im_end|>"),
                "max_position_embeddings": 32768,
                "vocab_size": tokenizer.get_vocab_size(),
            },
            "vision_config": {
                "model_type": "qwen3_vl_vision",
                "patch_size": 16,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
            },
            "tie_word_embeddings": False,
        },
    )
    ends = [token("<|im_end|>"), token("<|endoftext|>")]
    write(
        "generation_config.json",
        {"do_sample": False, "eos_token_id": ends, "pad_token_id": token("<|endoftext|>")},
    )


if __name__ == "__main__":
    main()
