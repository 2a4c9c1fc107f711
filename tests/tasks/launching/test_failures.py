"""The failure of a process is told by who died of what; a mistake is the mistake itself."""

import signal
from pathlib import Path

import pytest

from tasks.errors import AdapterflowError, UserError, VerificationError
from tasks.launching.launcher import DeadProcessError, _error
from tasks.launching.local_group import death
from tasks.launching.work import Failure, WorkFolder


@pytest.mark.parametrize(
    ("exit_code", "message"),
    [
        (-signal.SIGKILL, "process 7 was killed by SIGKILL, as the kernel does where memory runs"),
        (-signal.SIGSEGV, "rank 1 of 4 died: process 7 was killed by SIGSEGV"),
        (3, "rank 1 of 4 died: process 7 exited with status 3; see .*process-1.log"),
    ],
)
def test_a_process_that_left_no_word_is_told_by_its_end(
    exit_code: int, message: str, tmp_path: Path
) -> None:
    """By signal or status, with its log; the step has more attempts."""
    folder = WorkFolder(tmp_path)
    folder.log(1).touch()
    error = _error({1: death(exit_code, 7)}, folder, 4)
    with pytest.raises(DeadProcessError, match=message):
        raise error
    assert not isinstance(error, AdapterflowError)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("VerificationError", VerificationError),
        ("UserError", UserError),
        ("ValueError", DeadProcessError),
        ("shortened", DeadProcessError),
    ],
)
def test_an_error_raised_on_purpose_is_raised_as_such(
    kind: str, expected: type[Exception], tmp_path: Path
) -> None:
    """Whether the step is retried depends on the error's class, as in one process."""
    folder = WorkFolder(tmp_path)
    folder.failure(0).write_text(Failure(kind=kind, message="loss is nan").model_dump_json())
    error = _error({0: folder.failure_of(0) or death(1, 7)}, folder, 2)
    assert type(error) is expected
    assert "loss is nan" in str(error)
