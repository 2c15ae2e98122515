"""The formulas of a GPT, twice under the same names: `reference` to read, `fused` to run.

Both files offer softmax, linear, layer_norm, gelu, attention, cross_entropy and linear_cross_entropy with the same
arguments. Without dropout their values and gradients agree, which a test checks name by name.
"""

from types import ModuleType

from torch import nn

from gpt.ops import fused, reference


def implementation(name: str) -> ModuleType:
    """Return the Python module of the formulas called `name`, "fused" or "reference"."""
    return {"fused": fused, "reference": reference}[name]


class OpsModule(nn.Module):
    """A module that computes with `fused`, or with `reference` after `use_implementation(module, "reference")`."""

    implementation = "fused"  # a name, because a Python module as an attribute cannot be copied or pickled

    @property
    def ops(self) -> ModuleType:
        """The Python module of the formulas."""
        return implementation(self.implementation)


def use_implementation(model: nn.Module, name: str) -> None:
    """Let all layers of `model` compute with the formulas called `name`, "fused" or "reference"."""
    for module in model.modules():
        if isinstance(module, OpsModule):
            module.implementation = name
