"""Memory that is free for this process, given back to the machine.

glibc's malloc keeps what was freed for itself. After a training that is half a gigabyte, beside
which the next step would load a second model.
"""

import ctypes
import gc
import sys


def give_back() -> None:
    """Collect what nothing refers to, and let go of freed memory, also a GPU's."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    if sys.platform == "linux" and hasattr(trim := ctypes.CDLL(None), "malloc_trim"):
        trim.malloc_trim(0)
