"""Return freed memory to the operating system.

glibc's malloc keeps freed memory for reuse. After training that is several hundred megabytes, while
the next step loads another model.
"""

import ctypes
import gc
import sys


def release_memory() -> None:
    """Collect garbage, and return freed memory to the operating system and the GPU."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc and hasattr(libc, "malloc_trim"):  # only glibc has it
        libc.malloc_trim(0)
