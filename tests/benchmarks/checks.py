"""What the checks of a training step cost, in CPU time, because the machine may be shared.

OMP_NUM_THREADS=1 python tests/benchmarks/checks.py
"""

import hashlib
import tempfile
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from kosmosg_platform.training.stability import is_finite, poison

GIGABYTE = 250_000_000  # fp32 numbers


def seconds(call: Callable[[], object], times: int, rounds: int = 5) -> float:
    """CPU seconds of one call, the best of several rounds."""
    best = float("inf")
    call()
    for _ in range(rounds):
        begun = time.process_time()
        for _ in range(times):
            call()
        best = min(best, (time.process_time() - begun) / times)
    return best


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        weight = torch.ones(8, requires_grad=True)
        plain = seconds(lambda: (weight.sum() * 2.0).backward(), 2000)

        def checked() -> None:
            loss = weight.sum()
            (loss * 2.0 * poison(loss)).backward()

        print(f"factor of the loss: {1e6 * (seconds(checked, 2000) - plain):.1f} us for each micro-batch")

        def reduce(*numbers: float) -> list[float]:
            sums = torch.tensor(numbers)
            dist.all_reduce(sums)
            return sums.tolist()

        more = seconds(lambda: reduce(3.0, 0.0, 0.0), 1000) - seconds(lambda: reduce(3.0), 1000)
        print(f"two more numbers in a reduction: {1e6 * more:.1f} us a step")
        state = torch.randn(GIGABYTE // 10)
        print(f"state is finite: {10 * seconds(lambda: is_finite({'state': state}), 1):.3f} s per GB")
        content = state.numpy().tobytes()
        print(f"sha256, to compare: {10 * seconds(lambda: hashlib.sha256(content).digest(), 1):.3f} s per GB")
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
