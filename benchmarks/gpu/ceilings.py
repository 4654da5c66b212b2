"""What this machine reaches at most: the measure for everything else.

    copy        device to device, read and written bytes counted
    read        a reduction over as many bytes
    product     a large product in the model's dtype, as torch's library makes it
    links       pinned memory to the device and back, one way at a time
    launch      a kernel that does nothing: alone, and one of many in a CUDA graph
"""

from typing import Any

import torch

from gpu.bench import Bench
from gpu.floors import Ceilings

LAUNCHES = 100


def run(bench: Bench) -> dict[str, Any]:
    rows = [{"ceiling": name, "value": value, "unit": unit} for name, value, unit in figures(bench)]
    return {"rows": rows, **{str(row["ceiling"]): row["value"] for row in rows}}


def measure(bench: Bench) -> Ceilings:
    """For parts that run without this one."""
    moved = {name: value for name, value, _ in figures(bench, launches=False)}
    return Ceilings(max(moved["copy"], moved["read"]) * 1e9, moved["product"] * 1e12, moved["to_device"] * 1e9,
                    moved["to_host"] * 1e9)


def figures(bench: Bench, launches: bool = True) -> list[tuple[str, float, str]]:
    copy, read = memory(bench)
    to_device, to_host = links(bench)
    found = [("copy", copy, "GB/s"), ("read", read, "GB/s"), ("product", product(bench), "TFLOP/s"),
             ("to_device", to_device, "GB/s"), ("to_host", to_host, "GB/s")]
    if launches and bench.device.type == "cuda":
        alone, in_graph = launch_us(bench)
        found += [("launch", alone, "us"), ("launch_in_graph", in_graph, "us")]
    return found


def memory(bench: Bench) -> tuple[float, float]:
    """GB/s of a copy, and of reading alone."""
    source = torch.zeros(bench.sizes.moved_bytes // 4, dtype=torch.float32, device=bench.device)
    target = torch.empty_like(source)
    size = source.numel() * 4
    copy = 2 * size / bench.timer.seconds(lambda: target.copy_(source))
    read = size / bench.timer.seconds(source.sum)
    return copy / 1e9, read / 1e9


def product(bench: Bench) -> float:
    """TFLOP/s. Of random numbers: a chip is faster with zeros."""
    size = bench.sizes.product_size
    x, weight = bench.normal(size, size), bench.normal(size, size)
    return 2 * size ** 3 / bench.timer.seconds(lambda: torch.nn.functional.linear(x, weight)) / 1e12


def links(bench: Bench) -> tuple[float, float]:
    """GB/s to the device, and from it."""
    size = bench.sizes.moved_bytes // 4
    on_host = torch.empty(size, dtype=torch.uint8, pin_memory=bench.device.type == "cuda")
    on_device = torch.empty(size, dtype=torch.uint8, device=bench.device)
    to_device = bench.timer.seconds(lambda: on_device.copy_(on_host, non_blocking=True))
    to_host = bench.timer.seconds(lambda: on_host.copy_(on_device, non_blocking=True))
    return size / to_device / 1e9, size / to_host / 1e9


def launch_us(bench: Bench) -> tuple[float, float]:
    """Of one small kernel: what the CPU takes to launch it, and what the device takes for it within a graph."""
    x = torch.zeros(1, device=bench.device)

    def many() -> None:
        for _ in range(LAUNCHES):
            x.add_(1)

    alone = bench.timer.wall(many, repeats=5, warm=2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        many()
    return alone / LAUNCHES * 1e6, bench.timer.seconds(graph.replay) / LAUNCHES * 1e6
