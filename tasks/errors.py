"""The errors that adapterflow raises on purpose, by what should happen next."""


class AdapterflowError(Exception):
    """Root of all errors raised on purpose."""


class UserError(AdapterflowError, ValueError):
    """The user's input can't work: exit status 2, no retry.

    The message says what was given, what was possible and what to do.
    """


class UnwritableError(AdapterflowError, OSError):
    """A file or folder can't be written: the disk is full, or permission is missing. No retry."""


class PassingError(AdapterflowError):
    """A temporary failure, such as a lost connection: the step is retried."""


class VerificationError(AdapterflowError, RuntimeError):
    """A step's verification failed, such as an adapter that training did not change. No retry."""
