"""The formulas of a GPT, written twice under the same names: `explicit` to be read, `fused` to be run.

Both rooms offer softmax, linear, layer_norm, gelu, made_again, attention, cross_entropy and linear_cross_entropy with
the same arguments; at dropout 0 their values and gradients agree, which a test asserts name by name.
`GPTConfig.kernels` picks the room.
"""

from types import ModuleType

from gpt.ops import fused, reference


def implementation(name: str) -> ModuleType:
    """The room called `name`, "fused" or "explicit"."""
    return {"fused": fused, "reference": reference}[name]
