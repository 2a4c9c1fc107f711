"""The errors that adapterflow raises on purpose, told apart by whose turn it is to act."""


class AdapterflowError(Exception):
    """Root of all errors raised on purpose."""


class UserError(AdapterflowError, ValueError):
    """What was given cannot work: one clear message, exit status 2, no retry.

    The message says what was given, what was possible and what to do.
    """


class UnwritableError(AdapterflowError, OSError):
    """A file or folder can't be written: the disk is full, or the place is not writable."""


class PassingError(AdapterflowError):
    """What failed may go well in a while, such as a lost connection: it is tried again."""


class VerificationError(AdapterflowError, RuntimeError):
    """A step's own proof failed, such as an adapter that did not change in training."""
