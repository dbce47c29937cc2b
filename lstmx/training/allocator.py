"""Memory that a training step frees is kept for the next one, instead of being returned to the system."""

import ctypes
import platform

# Parameters of mallopt in malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Makes the C library of this process keep freed memory.

    glibc maps blocks of more than 32 MiB anew for each allocation, and the system clears every page of them
    when it is first used. XLA allocates the temporary arrays of a compiled function as one block, so a
    training step on a CPU whose temporaries exceed that size pays for it each time: a language model of
    10,000 words 32,000 page faults and about a tenth of its time.

    The process keeps its largest use of memory until it ends, so this is for programs that train and not for
    libraries. To take effect it has to be called before threads allocate memory, that is before jax computes.

    Returns:
        Whether it has an effect: on Linux with glibc.

    Example:
        >>> keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
        True
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Threads with an arena of their own would map large blocks even if mappings are forbidden.
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
    answers = [mallopt(parameter, value) for parameter, value in settings.items()]
    return answers == [1] * len(settings)
