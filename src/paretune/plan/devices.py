"""Accelerators and their peak rates, from public data sheets, and the part of them that a run reaches."""

from dataclasses import dataclass

COMPUTE_FRACTION, BANDWIDTH_FRACTION, NETWORK_FRACTION = 0.4, 0.6, 0.7
"""Part of the peaks of a data sheet that a run is expected to reach. Assumed, not measured: `make gpu-proof`
measures it."""
LAYER_OVERHEAD_SECONDS = 2e-4
"""Start of a layer's kernels one by one, without CUDA graphs; what a decoding step takes at least per layer.
Assumed as well."""
GPUS_PER_NODE = 8
COLLECTIVE_SECONDS = 3e-5
"""Latency of a collective operation per doubling of the number of processes."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """Peak rates of one accelerator; network rates are per accelerator and direction."""

    name: str
    flops: float
    """bfloat16 operations per second, dense."""
    bandwidth: float
    """Bytes per second of its memory."""
    memory: float
    """Bytes."""
    node_link: float
    """Bytes per second to the others of a node."""
    network_link: float
    """Bytes per second to other nodes. The data sheets do not have it: the usual adapter is assumed."""
    source: str
    compute_fraction: float = COMPUTE_FRACTION
    is_cpu: bool = False

    def link(self, num_ranks: int) -> float:
        """Bytes per second of the slowest link that a collective of so many processes uses."""
        peak = self.node_link if num_ranks <= GPUS_PER_NODE else min(self.node_link, self.network_link)
        return NETWORK_FRACTION * peak


_NVIDIA, _NETWORK = "NVIDIA {} data sheet", "; network: {} Gbit/s per GPU assumed"
_DATA_SHEETS = (
    # name, TFLOP/s, GB/s, GB, GB/s in a node and between nodes, source
    ("h200", 989.0, 4800.0, 141.0, 450.0, 50.0, _NVIDIA.format("H200 SXM") + _NETWORK.format(400)),
    ("h100", 989.0, 3350.0, 80.0, 450.0, 50.0, _NVIDIA.format("H100 SXM") + _NETWORK.format(400)),
    ("a100-80", 312.0, 2039.0, 80.0, 300.0, 25.0, _NVIDIA.format("A100 SXM") + _NETWORK.format(200)),
    ("a100-40", 312.0, 1555.0, 40.0, 300.0, 25.0, _NVIDIA.format("A100 SXM") + _NETWORK.format(200)),
    ("l40s", 362.0, 864.0, 48.0, 32.0, 12.5, _NVIDIA.format("L40S") + ", PCIe 4" + _NETWORK.format(100)),
    ("4090", 165.0, 1008.0, 24.0, 32.0, 12.5, "NVIDIA Ada whitepaper, PCIe 4" + _NETWORK.format(100)),
    ("mi300x", 1307.0, 5300.0, 192.0, 448.0, 50.0, "AMD MI300X data sheet" + _NETWORK.format(400)),
)
DEVICES = {
    name: Device(
        name=name,
        flops=teraflops * 1e12,
        bandwidth=bandwidth * 1e9,
        memory=memory * 1e9,
        node_link=node_link * 1e9,
        network_link=network_link * 1e9,
        source=source,
    )
    for name, teraflops, bandwidth, memory, node_link, network_link, source in _DATA_SHEETS
}
"""Name -> accelerator. `cpu` is this machine, whose rate is measured."""


def cpu_device(flops_per_second: float, memory: float) -> Device:
    """This machine's CPU as a device.

    Args:
        flops_per_second: Measured rate of a decoder layer (`models.throughput`).
        memory: Bytes of main memory.
    """
    return Device(
        name="cpu",
        flops=flops_per_second,
        bandwidth=2e10,
        memory=memory,
        node_link=2e9,
        network_link=1.25e9,
        source="rate of a layer, measured here; 20 GB/s of memory and gloo at 2 GB/s assumed",
        compute_fraction=1.0,
        is_cpu=True,
    )
