"""Measure a step's seconds and peak memory."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_MAC = "darwin"


class Measurement:
    """Seconds and peak bytes of a step, set when the step ends."""

    seconds: float = 0.0
    peak_memory_bytes: int = 0
    peak_gpu_bytes: int = 0

    def as_numbers(self, step: str) -> dict[str, float]:
        """Return what was measured of a step by its names in MLflow."""
        numbers = {
            f"seconds/{step}": self.seconds,
            f"peak_memory_mb/{step}": self.peak_memory_bytes / 1e6,
        }
        if self.peak_gpu_bytes:
            numbers[f"peak_gpu_memory_mb/{step}"] = self.peak_gpu_bytes / 1e6
        return numbers


@contextmanager
def measured() -> Iterator[Measurement]:
    """Measure the block."""
    measurement = Measurement()
    _reset_peaks()
    started = time.perf_counter()
    try:
        yield measurement
    finally:
        measurement.seconds = time.perf_counter() - started
        measurement.peak_memory_bytes = peak_memory_bytes()
        measurement.peak_gpu_bytes = peak_gpu_bytes()


def peak_memory_bytes() -> int:
    """Return this process's peak resident memory; on Linux since the last reset of the peak."""
    if _STATUS.exists():
        line = next(x for x in _STATUS.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == _MAC else peak * 1024


def _reset_peaks() -> None:
    # Linux: 5 resets the peak resident memory (proc_pid_clear_refs(5)). Elsewhere the peak is that
    # of the process since its start.
    with suppress(OSError):
        _CLEAR.write_text("5")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_gpu_bytes() -> int:
    """Return the peak memory that this process had on its GPU since the last reset; 0 without."""
    torch = sys.modules.get("torch")
    if torch is None:
        return 0
    if torch.backends.mps.is_available():
        # torch has no peak there; what the driver gave is kept by torch until the next release.
        return int(torch.mps.driver_allocated_memory())
    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0
