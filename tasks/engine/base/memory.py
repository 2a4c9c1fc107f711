"""Memory that is free for this process, given back to the machine.

glibc's malloc keeps what was freed for itself. After a training that is some hundred megabytes,
beside which the next step would load a second model.
"""

import ctypes
import gc
import sys


def give_back() -> None:
    """Collect what nothing refers to, and let go of freed memory, also a GPU's."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc and hasattr(libc, "malloc_trim"):  # glibc's alone
        libc.malloc_trim(0)
