"""Runs the hashing and caching code of a patched vLLM 0.16.0: the keys told are the keys hashed.

usage: patched.py SITE_PACKAGES

Runs in an environment with PyTorch and most of what vLLM imports; of what is missing, nothing is used.
"""

import importlib.abc
import importlib.machinery
import sys
import types

BLOCK_TOKENS = 4
MISSING = {"diskcache", "gguf"}


class Missing(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Empty modules in the place of packages that this vLLM imports and the next ones do not."""

    def find_spec(self, name, _path, _target=None):
        wanted = name.partition(".")[0] in MISSING
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if wanted else None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__path__ = []
        module.__getattr__ = lambda name: type(name, (), {})
        return module

    def exec_module(self, _module):
        pass


sys.meta_path.append(Missing())
sys.path.insert(0, sys.argv[1])

import msgspec  # noqa: E402
import torch  # noqa: E402
from vllm.distributed.kv_events import KVEventBatch  # noqa: E402
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange  # noqa: E402
from vllm.sampling_params import SamplingParams  # noqa: E402
from vllm.utils.hashing import sha256_cbor  # noqa: E402
from vllm.v1.core import kv_cache_utils  # noqa: E402
from vllm.v1.core.block_pool import BlockPool  # noqa: E402
from vllm.v1.request import Request  # noqa: E402


class Lora:
    adapter_id = 3
    lora_name = name = "lora"


def image(name, offset, length):
    place = PlaceholderRange(offset=offset, length=length)
    return MultiModalFeatureSpec(data=None, modality="image", identifier=name, mm_position=place)


def events_of(tokens, decoded=0, cached_blocks=(), **fields):
    """The request, and its events as a subscriber reads them; cached in several steps where told."""
    ids = None if "prompt_embeds" in fields else list(range(100, 100 + tokens))
    hasher = kv_cache_utils.get_request_block_hasher(BLOCK_TOKENS, sha256_cbor)
    request = Request(
        "a", ids, SamplingParams(max_tokens=99), None, None, block_hasher=hasher, **fields
    )
    for _ in range(decoded):
        request.append_output_token_ids(7)
    pool = BlockPool(64, True, BLOCK_TOKENS, enable_kv_cache_events=True)
    blocks = pool.get_new_blocks(len(request.block_hashes))
    done = 0
    for full in (*cached_blocks, len(request.block_hashes)):
        pool.cache_full_blocks(request, blocks, done, full, BLOCK_TOKENS, 0)
        done = full
    batch = KVEventBatch(ts=1.0, events=pool.take_events())
    return request, msgspec.msgpack.decode(msgspec.msgpack.encode(batch))[1]


def check(wanted, tokens, hashed=True, **given):
    """What is told, and that each block's hash comes out of what is told alone."""
    request, events = events_of(tokens, **given)
    told = []
    parent = None
    for event in events:
        assert event[0] == "BlockStored" and len(event) == 9, event
        assert len(event[8]) == len(event[1]), event
        for index, keys in enumerate(event[8]):
            ids = event[3][index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS]
            hash_told = kv_cache_utils.hash_block_tokens(
                sha256_cbor, parent, ids, keys and tuple(keys)
            )
            parent = request.block_hashes[len(told)]
            assert not hashed or hash_told == parent, f"block {len(told)} of {given}: {keys}"
            told.append(keys)
    assert told == wanted, f"{told}, not {wanted}"


def main():
    kv_cache_utils.init_none_hash(sha256_cbor)
    check([None, None], 8)
    check([["a"], ["b"], ["b"]], 12, mm_features=[image("a", 1, 3), image("b", 4, 6)])
    check([["a"], ["a", "b"]], 8, mm_features=[image("a", 2, 3), image("b", 5, 2)])
    check([["a", "salt"], ["a"], None], 12, mm_features=[image("a", 1, 7)], cache_salt="salt")
    # Cached in steps, the second of which begins where the image ends.
    check([["a"], ["a"], None, None], 16, mm_features=[image("a", 1, 7)], cached_blocks=[2])
    # A block of decoded tokens right behind an image is hashed with it.
    check(
        [["a"], ["a"], ["a"], None], 8, decoded=9, mm_features=[image("a", 1, 7)], cached_blocks=[2]
    )
    check(
        [["lora", "a", "salt"], ["lora"]],
        8,
        lora_request=Lora(),
        cache_salt="salt",
        mm_features=[image("a", 0, 2)],
    )
    _, events = events_of(8, prompt_embeds=torch.ones(8, 16))
    digests = [keys[0] for event in events for keys in event[8]]
    assert len(digests) == 2 and all(len(digest) == 32 for digest in digests), digests
    print("8 requests told what they hashed")


main()
