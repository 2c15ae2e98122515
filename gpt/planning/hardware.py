"""Machines by name, as their makers describe them, to plan for: h100x8, a100, m3; and this one, which is measured."""

import dataclasses
import re
from dataclasses import dataclass

from gpt.system.errors import did_you_mean


@dataclass(frozen=True)
class Hardware:
    """One kind of device, and how many of them train together, a process each."""

    name: str
    device: str  # "cuda" or "mps"; "" is whichever this machine has
    memory: float = 0  # bytes of each
    flops: float = 0  # per second of each: dense matrix products, in bfloat16 where it is there in hardware
    bandwidth: float = 0  # bytes per second that each reads or writes of its own memory
    link: float = 0  # bytes per second that each sends to the others, while it receives as many
    has_bfloat16: bool = True
    n: int = 1

    @property
    def words(self) -> str:
        """What it is called: h100x8."""
        return f"{self.name}x{self.n}" if self.n > 1 else self.name


LOCAL = Hardware("this", "")

# NVIDIA's data sheets, without sparsity; links are NVLink's, in one direction, or those of PCIe 4.0 x16. Apple states
# no FLOPs: ten GPU cores of 128 lanes at 1.6 GHz, an addition and a multiplication each, in the largest M3.
KNOWN = {
    "h200": Hardware("h200", "cuda", 141e9, 989e12, 4.8e12, 450e9),
    "h100": Hardware("h100", "cuda", 80e9, 989e12, 3.35e12, 450e9),
    "a100": Hardware("a100", "cuda", 80e9, 312e12, 2.04e12, 300e9),
    "l4": Hardware("l4", "cuda", 24e9, 121e12, 0.3e12, 32e9),
    "rtx4090": Hardware("rtx4090", "cuda", 24e9, 165e12, 1.01e12, 32e9),
    "rtx3090": Hardware("rtx3090", "cuda", 24e9, 71e12, 0.94e12, 32e9),
    "m3": Hardware("m3", "mps", 24e9, 4.1e12, 0.1e12, has_bfloat16=False),
    "this": LOCAL,
}


def hardware(words: str) -> Hardware:
    """The hardware of a name, and how many of it: "h100x8", "a100", "this", "thisx2". ValueError for an unknown one."""
    name, count = words.lower(), "1"
    if name not in KNOWN and (several := re.fullmatch(r"(.+)x([1-9]\d{0,5})", name)):
        name, count = several.groups()
    if name not in KNOWN:
        raise ValueError(f"unknown hardware {words!r}: {did_you_mean(name, list(KNOWN))} Several are named as h100x8")
    return dataclasses.replace(KNOWN[name], n=int(count))
