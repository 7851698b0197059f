"""What an error in computing a batch means: memory, the device, the environment, or the rows themselves.

It decides which errors may pass by themselves and which name stands in quarantine; what is done about them
is decided by the batch loop.
"""

import errno

from batch_platform.core.inference.deadline import DeadlineError

# Of the environment, never of a row, and often over within seconds. CUDA errors are not among them: after
# one, nothing works in the process any more.
TRANSIENT = (ConnectionError, TimeoutError, BlockingIOError, InterruptedError)

_MEMORY_WORDS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
_SHOWN_CHARACTERS = 500


def is_transient(error: Exception) -> bool:
    """Whether the same batch may well succeed in a moment."""
    return isinstance(error, TRANSIENT)


def is_memory(error: Exception) -> bool:
    """Whether fewer rows may well succeed: memory of the host or of the device ran out."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # torch's errors are all of this type; other types may carry a row's own text.
    is_told = isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY_WORDS)
    return isinstance(error, MemoryError) or is_told


def is_broken_device(error: Exception) -> bool:
    """Whether nothing will succeed until the process is started again."""
    is_cuda = type(error).__name__ == "AcceleratorError" or (
        isinstance(error, RuntimeError) and "CUDA error" in str(error)
    )
    return is_cuda and not is_memory(error)


def cause(error: Exception, batch_timeout: float) -> tuple[str, str]:
    """The error type and message of a row that fails when it is computed alone."""
    if isinstance(error, DeadlineError):
        return "Timeout", f"computing this row alone takes longer than {batch_timeout:g} s"
    return "OutOfMemory" if is_memory(error) else type(error).__name__, describe(error)


def describe(error: Exception) -> str:
    """The first line of an error."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:_SHOWN_CHARACTERS]
