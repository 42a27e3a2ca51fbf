"""Lets vLLM on a CPU use blocks of 16 tokens, as its GPU engines do.

The CPU kernels can (16 is their vector width), but since 0.29 the attention layer offers multiples
of 32 only. vLLM loads this as a plugin in each of its processes.
"""

from vllm.v1.attention.backend import MultipleOf
from vllm.v1.attention.backends import cpu_attn


def register():
    cpu_attn.CPUAttentionBackend.get_supported_kernel_block_sizes = staticmethod(
        lambda kv_cache_spec=None: [MultipleOf(16)]
    )
