"""Hardware to plan for, from the makers' data sheets: h100x8, a100, m3; and this machine, which is measured instead."""

import dataclasses
import re
from dataclasses import dataclass

from gpt.system.errors import did_you_mean


@dataclass(frozen=True)
class Hardware:
    """A kind of device, and the number of devices that train together, one process each."""

    name: str
    device: str  # "cuda" or "mps"; "": the device that this machine has
    memory: float = 0  # bytes per device
    flops: float = 0  # dense matrix FLOP/s per device, in bfloat16 or float16 where the hardware has one of them
    bandwidth: float = 0  # bytes/s between a device and its own memory
    link: float = 0  # bytes/s from a device to the others, in one direction
    has_half: bool = True  # dtype = "auto" is bfloat16 or float16
    n: int = 1
    per_node: int = 8  # devices of one machine, which the link connects
    network: float = 25e9  # bytes/s from a device to those of other machines, in one direction
    devices: str = ""  # names of torch.cuda.get_device_name, as a regular expression

    def n_shards(self, parallel: str) -> int:
        """The number of processes that share the weights of one model."""
        return {"ddp": 1, "fsdp": self.n, "hsdp": min(self.n, self.per_node)}[parallel]

    @property
    def label(self) -> str:
        """The name with the count: h100x8."""
        return f"{self.name}x{self.n}" if self.n > 1 else self.name


LOCAL = Hardware("this", "")

# NVIDIA's data sheets, without sparsity; H100 and H200 are the SXM boards. Links are NVLink in one direction, or PCIe
# x16. Apple publishes no FLOP/s: ten GPU cores of 128 lanes at 1.6 GHz with a fused multiply-add each, as in the
# largest M3. Networks are those of NVIDIA's DGX H100 and A100: 400 and 200 Gb/s for each device.
KNOWN = {
    "h200": Hardware("h200", "cuda", 141e9, 989e12, 4.8e12, 450e9, network=50e9, devices="NVIDIA H200"),
    "h100": Hardware("h100", "cuda", 80e9, 989e12, 3.35e12, 450e9, network=50e9, devices="NVIDIA H100 80GB HBM3"),
    "a100": Hardware("a100", "cuda", 80e9, 312e12, 2.04e12, 300e9, devices="NVIDIA A100[- ](?!.*MIG).*"),
    "l4": Hardware("l4", "cuda", 24e9, 121e12, 0.3e12, 32e9, devices="NVIDIA L4"),
    "rtx4090": Hardware("rtx4090", "cuda", 24e9, 165e12, 1.01e12, 32e9, devices="NVIDIA GeForce RTX 4090"),
    "rtx3090": Hardware("rtx3090", "cuda", 24e9, 71e12, 0.94e12, 32e9, devices="NVIDIA GeForce RTX 3090"),
    "t4": Hardware("t4", "cuda", 16e9, 65e12, 0.32e12, 16e9, devices="Tesla T4"),
    "m3": Hardware("m3", "mps", 24e9, 4.1e12, 0.1e12, has_half=False),
    "this": LOCAL,
}


def get_hardware(name: str) -> Hardware:
    """Return the hardware of a name, with an optional count: "a100", "h100x8", "this", "thisx2".

    Raises ValueError for an unknown name.
    """
    kind, count = name.lower(), "1"
    if kind not in KNOWN and (several := re.fullmatch(r"(.+)x([1-9]\d{0,5})", kind)):
        kind, count = several.groups()
    if kind not in KNOWN:
        raise ValueError(f"unknown hardware {name!r}: {did_you_mean(kind, list(KNOWN))} (eight of them: h100x8)")
    return dataclasses.replace(KNOWN[kind], n=int(count))


def find_hardware(device_name: str) -> Hardware | None:
    """Return the hardware of a device by its torch.cuda.get_device_name; None if it is unknown.

    A part of a device, such as an A100 divided by MIG, is unknown.
    """
    known = (hardware for hardware in KNOWN.values() if hardware.devices)
    return next((hardware for hardware in known if re.fullmatch(hardware.devices, device_name)), None)


def peak_flops(device_name: str) -> float | None:
    """Return the `flops` on the data sheet of a device, by its torch.cuda.get_device_name; None if it is unknown."""
    hardware = find_hardware(device_name)
    return hardware.flops if hardware else None
