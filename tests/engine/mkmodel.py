"""Makes a tiny vision-language model with random weights, and a LoRA adapter of it.

usage: mkmodel.py qwen2_vl|qwen3_vl FOLDER

Writes FOLDER/<family> and FOLDER/<family>-lora. Nothing is downloaded, and the same seed gives the
same weights: what such a model says means nothing, but it tokenises, sizes images and caches
blocks as its grown family does.
"""

import json
import os
import pathlib
import sys

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", CUDA_VISIBLE_DEVICES="")

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, trainers

SEED = 0
# Tokens of the trained part; the alphabet of bytes alone has 256.
TRAINED_TOKENS = 512
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
# How Qwen's tokenizers split a text.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "You are a helpful assistant. system user assistant",
    "What is in this image? Describe the picture in detail.",
    "Compare the two images and tell the difference between them.",
    "The quick brown fox jumps over the lazy dog.",
    "A router sends each request to the worker that holds the blocks of its prompt.",
]
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 128, 4, 2, 32, 2
LORA_RANK = 8


def tokenizer():
    """A byte-level BPE tokenizer, trained on a few lines."""
    made = Tokenizer(models.BPE(byte_fallback=False, fuse_unk=False))
    made.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PIECES), "isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TRAINED_TOKENS,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
    )
    made.train_from_iterator(CORPUS * 4, trainer)
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    return made


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_tokenizer(folder):
    """Writes the tokenizer's files; the ids of the special tokens and the size of the vocabulary."""
    made = tokenizer()
    made.save(str(folder / "tokenizer.json"))
    ids = {text: made.token_to_id(text) for text in SPECIAL}
    template = (pathlib.Path(__file__).parent / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template)
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    added = {str(ids[text]): {"content": text, "special": True, **plain} for text in SPECIAL}
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "model_max_length": 32768,
        "errors": "replace",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "chat_template": template,
        "additional_special_tokens": SPECIAL[1:],
        "added_tokens_decoder": added,
    }
    write_json(folder / "tokenizer_config.json", config)
    bpe = json.loads((folder / "tokenizer.json").read_text())["model"]
    write_json(folder / "vocab.json", bpe["vocab"])
    merges = "".join(" ".join(merge) + "\n" for merge in bpe["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges)
    return ids, (made.get_vocab_size() + 63) // 64 * 64


def write_processors(folder, family):
    """Writes how images become patches."""
    is_qwen3 = family == "qwen3_vl"
    patch = 16 if is_qwen3 else 14
    token_pixels = (2 * patch) ** 2
    size = {"shortest_edge": 4 * token_pixels, "longest_edge": 1024 * token_pixels}
    shared = {
        "size": size,
        "patch_size": patch,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5] * 3 if is_qwen3 else [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.5] * 3 if is_qwen3 else [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "Qwen3VLProcessor" if is_qwen3 else "Qwen2VLProcessor",
    }
    kind = "Qwen2VLImageProcessorFast" if is_qwen3 else "Qwen2VLImageProcessor"
    pixels = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    image = {**shared, **pixels, "image_processor_type": kind}
    write_json(folder / "preprocessor_config.json", image)
    kind = "Qwen3VLVideoProcessor" if is_qwen3 else "Qwen2VLVideoProcessor"
    write_json(folder / "video_preprocessor_config.json", {**shared, "video_processor_type": kind})


def text_config(ids, vocab_tokens, is_qwen3):
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
    config = {
        "vocab_size": vocab_tokens,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "intermediate_size": 2 * HIDDEN,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "rope_parameters": rope,
    }
    if is_qwen3:
        config["head_dim"] = HEAD_DIM
        config["rope_parameters"] = {**rope, "rope_theta": 5e6, "mrope_interleaved": True}
    return config


def vision_config(is_qwen3):
    shared = {"depth": 2, "num_heads": 2, "in_channels": 3, "spatial_merge_size": 2}
    shared["temporal_patch_size"] = 2
    if not is_qwen3:
        own = {"embed_dim": 64, "hidden_size": HIDDEN, "mlp_ratio": 2, "patch_size": 14}
        return {**shared, **own}
    own = {"hidden_size": 64, "intermediate_size": 128, "patch_size": 16, "out_hidden_size": HIDDEN}
    own |= {"num_position_embeddings": 256, "deepstack_visual_indexes": [0]}
    return {**shared, **own}


def write_model(folder, family, ids, vocab_tokens):
    """Writes the model's configuration and its random weights."""
    is_qwen3 = family == "qwen3_vl"
    name = "Qwen3VL" if is_qwen3 else "Qwen2VL"
    config = getattr(transformers, f"{name}Config")(
        text_config=text_config(ids, vocab_tokens, is_qwen3),
        vision_config=vision_config(is_qwen3),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    config.dtype = torch.bfloat16
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).to(torch.bfloat16)
    model.save_pretrained(folder, safe_serialization=True)
    ends = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    generation = {"do_sample": False, "eos_token_id": ends, "pad_token_id": ends[1]}
    write_json(folder / "generation_config.json", generation)


def write_lora(folder, base):
    """Writes an adapter that changes what attention sees."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": LORA_RANK,
        "lora_alpha": 2 * LORA_RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": str(base),
    }
    write_json(folder / "adapter_config.json", config)
    weights = {}
    for layer in range(LAYERS):
        attention = f"base_model.model.model.language_model.layers.{layer}.self_attn"
        for part, width in (("q_proj", HEADS * HEAD_DIM), ("v_proj", KV_HEADS * HEAD_DIM)):
            weights[f"{attention}.{part}.lora_A.weight"] = torch.randn(LORA_RANK, HIDDEN) * 0.02
            weights[f"{attention}.{part}.lora_B.weight"] = torch.randn(width, LORA_RANK) * 0.02
    save_file(weights, folder / "adapter_model.safetensors")


def main(family, parent):
    torch.manual_seed(SEED)
    folder = pathlib.Path(parent) / family
    lora = pathlib.Path(parent) / f"{family}-lora"
    for made in (folder, lora):
        made.mkdir(parents=True, exist_ok=True)
    ids, vocab_tokens = write_tokenizer(folder)
    write_processors(folder, family)
    write_model(folder, family, ids, vocab_tokens)
    write_lora(lora, folder)
    print(f"made {folder} and {lora}")


if __name__ == "__main__":
    main(*sys.argv[1:])
