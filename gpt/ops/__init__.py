"""The formulas of a GPT, twice under the same names and with the same arguments: `reference` to read, `fused` to run.

A test holds their values and gradients equal, name by name, without dropout.
"""

from types import ModuleType

from torch import nn

from gpt.ops import fused, reference

IMPLEMENTATIONS = {"fused": fused, "reference": reference}


class OpsModule(nn.Module):
    """A module that computes with `fused`, or with `reference` after `use_implementation(module, "reference")`."""

    implementation = "fused"  # a name, because a Python module as an attribute cannot be copied or pickled

    @property
    def ops(self) -> ModuleType:
        """The Python module of the formulas."""
        return IMPLEMENTATIONS[self.implementation]


def use_implementation(model: nn.Module, name: str) -> None:
    """Let all layers of `model` compute with the formulas called `name`, "fused" or "reference"."""
    for module in model.modules():
        if isinstance(module, OpsModule):
            module.implementation = name
