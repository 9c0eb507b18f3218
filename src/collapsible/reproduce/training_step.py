"""One training step of SESR-M5 in either mode: its time, its memory, its MACs.

Used by ``reproduce sesr/training-cost`` and by ``benchmarks/training_step.py``. Each measurement
runs in a process of its own, since peak memory is a property of a process.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from collapsible.errors import CollapsibleError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from collapsible.blocks import CollapsibleConv2d
    from collapsible.blocks.collapsible_conv import Mode

BATCH, PATCH = 32, 64


@dataclass(frozen=True)
class StepCost:
    """Seconds of a step (median), and MiB: held by tensors at the peak, and grown by the process.

    ``resident_mebibytes`` is None where the system does not tell (Windows).
    """

    seconds: float
    tensor_mebibytes: float
    resident_mebibytes: float | None


def measure_here(mode: Mode, steps: int, threads: int, batch: int = BATCH) -> StepCost:
    """Measure in this process; its peak so far must be lower than the step's."""
    import torch

    from collapsible.blocks import set_mode
    from collapsible.models import create_model

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = set_mode(create_model("sesr_m5", scale=2), mode)
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)

    def step(batch: int) -> float:
        low = torch.rand(batch, 1, PATCH, PATCH).to(memory_format=torch.channels_last)
        high = torch.rand(batch, 1, 2 * PATCH, 2 * PATCH)
        start = time.perf_counter()
        loss = (network(low) - high).abs().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return time.perf_counter() - start

    # One picture first: libraries, compiled kernels and the optimiser's state are there already
    # when the memory of the step itself is measured.
    step(1)
    before = _peak_kibibytes()
    times = [step(batch) for _ in range(steps + 1)]
    after = _peak_kibibytes()
    return StepCost(
        statistics.median(times[1:]),
        tensor_peak(lambda: step(batch)),
        None if before is None or after is None else (after - before) / 1024,
    )


def _peak_kibibytes() -> float | None:
    """The most resident memory that this process has had, where the system tells."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform == "darwin" else peak


def measure_alone(mode: Mode, steps: int, threads: int, batch: int = BATCH) -> StepCost:
    """``measure_here`` in a fresh process; raises ``CollapsibleError`` if that process fails."""
    code = (
        "import dataclasses, json, sys\n"
        "from collapsible.reproduce.training_step import measure_here\n"
        "mode, *numbers = sys.argv[1:]\n"
        "found = dataclasses.asdict(measure_here(mode, *map(int, numbers)))\n"
        "sys.stdout.write(json.dumps(found))\n"
    )
    command = [sys.executable, "-c", code, mode, str(steps), str(threads), str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CollapsibleError(f"the {mode} step could not be measured: {last}")
    return StepCost(**json.loads(done.stdout.splitlines()[-1]))


def tensor_peak(work: Callable[[], object]) -> float:
    """The most memory, in MiB, that tensors allocated during ``work`` hold at one time."""
    import torch

    with (
        tempfile.TemporaryDirectory() as folder,
        torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile,
    ):
        work()
        profile.stop()
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted(
        (event["ts"], event["args"]["Bytes"])
        for event in events
        if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0
    )
    held = list(itertools.accumulate(change for _, change in changes))
    return max(held) / 2**20


def forward_macs(mode: Mode) -> int:
    """MACs of one forward pass on 32 pictures of 64x64, by torch's own counter.

    Collapsing, which a training step does each time, is included. The counter goes by shapes: the
    network is on the meta device and holds no data. Half the counter's FLOPs are MACs.
    """
    import torch

    from collapsible.blocks import set_mode
    from collapsible.models import create_model

    with torch.device("meta"):
        network = set_mode(create_model("sesr_m5", scale=2), mode)
        return _macs(lambda: network(torch.empty(BATCH, 1, PATCH, PATCH)))


def _macs(work: Callable[[], object]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() // 2


def collapse_by_impulse(block: CollapsibleConv2d) -> Tensor:
    """The block's small kernel found as the paper finds it (algorithm 1), biases left out.

    One impulse per input channel goes through the wide layers; the answers, turned round, are
    the kernel [out, in, kh, kw]. Equals ``block.kernel_and_bias()[0]``, at more cost.
    """
    import torch
    import torch.nn.functional as F

    high, wide = block.kernel_size
    impulses = torch.zeros(
        block.in_channels,
        block.in_channels,
        2 * high - 1,
        2 * wide - 1,
        dtype=block.expand_weight.dtype,
        device=block.expand_weight.device,
    )
    index = torch.arange(block.in_channels)
    impulses[index, index, high - 1, wide - 1] = 1
    answers = F.conv2d(F.conv2d(impulses, block.expand_weight), block.project_weight)
    kernel = answers.flip(-2, -1).transpose(0, 1)
    if block.residual:
        from collapsible.algebra import identity_kernel

        kernel = kernel + identity_kernel(
            block.out_channels, block.kernel_size, dtype=kernel.dtype, device=kernel.device
        )
    return kernel


def impulse_macs(network: nn.Module) -> int:
    """MACs of collapsing all blocks of a network as the paper does, by torch's counter."""
    from collapsible.blocks import CollapsibleConv2d

    blocks = [m for m in network.modules() if isinstance(m, CollapsibleConv2d)]
    return _macs(lambda: [collapse_by_impulse(block) for block in blocks])
