"""What this machine has for another process: free memory, and how fast it multiplies.  Bytes; nothing here is hashed."""

import os
import subprocess
from pathlib import Path


def free_memory() -> int:
    """Bytes of main memory that are free for a new process here, within the control group's limit."""
    words = Path("/proc/meminfo").read_text().split()
    free = int(words[words.index("MemAvailable:") + 1]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
        stat = (group / "memory.stat").read_text().split()
    except (OSError, ValueError):
        return free
    reclaimable = int(stat[stat.index("inactive_file") + 1])
    return free if limit == "max" else min(free, int(limit) - used + reclaimable)


def resident() -> int:
    """Bytes of main memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def free_gpu_memory() -> int | None:
    """Free bytes of the first GPU, None without one."""
    try:
        asked = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
        said = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout
        return int(said.splitlines()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def matmul_rate(size: int = 1024, repeats: int = 3) -> float:
    """Operations per second of a float32 matrix product on this CPU, the best of `repeats`."""
    import time

    import numpy as np

    a = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        _ = a @ a
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
