"""One thread for linear algebra in a process that probes layers side by side.

Two probing threads with two BLAS threads each wait for one another on two cores (measured: up to a hundred times slower
beside other load), and a product's last bits depend on the number of threads: one thread gives the same bytes always.
"""

from __future__ import annotations

import threading

import scipy.linalg  # noqa: F401  (its own BLAS must be loaded to be limited)
from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_limited = False


def use_one_blas_thread() -> None:
    """Limit NumPy's and SciPy's BLAS to one thread, for good. Torch has threads of its own and keeps them."""
    global _limited
    with _lock:
        if not _limited:
            ThreadpoolController().limit(limits=1, user_api="blas")
            _limited = True
