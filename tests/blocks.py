"""Small models of each kind of block, for tests that hold for all of them."""

import pytest

GPT2_BLOCK = {"qkv_bias": True}
MODERN_BLOCK = {
    "position": "rope", "norm": "rms", "feed_forward": "swiglu", "ffn_dim": 24, "n_kv_heads": 2, "qk_norm": True,
    "bias": False,
}  # fmt: skip
WINDOWED_BLOCK = {"position": "rope", "window": 4, "full_every": 2, "feed_forward": "relu2", "n_kv_heads": 1}
BLOCKS = pytest.mark.parametrize("block", [GPT2_BLOCK, MODERN_BLOCK, WINDOWED_BLOCK], ids=["gpt2", "modern", "window"])
