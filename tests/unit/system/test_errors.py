"""What an error says, in one line."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.system import storage
from toolkit.system.errors import DiskError, InputError, LoaderError, expected, first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  one \ntwo"), "one "),
        (ValueError(), "ValueError"),
        (KeyError(""), "''"),
        (RuntimeError(" \n "), "RuntimeError"),
    ],
)
def test_an_error_is_one_line_when_it_says_much_or_nothing(error: Exception, line: str):
    assert first_line(error) == line


@pytest.mark.parametrize(("name", "code", "told"), [("é", 2, "set PYTHONUTF8=1"), ("e", 1, "e: No such file")])
def test_a_locale_that_lacks_a_file_name_is_told_in_one_line(name: str, code: int, told: str):
    """As where PYTHONUTF8=0 forbids what Python does by itself under LC_ALL=POSIX."""
    program = "import os, sys\nfrom toolkit.system.exit_codes import exit_code\n"
    program += f"sys.exit(exit_code(lambda: os.open({name!a}, 0)))"
    locale = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env={**os.environ, **locale}, capture_output=True, text=True, check=False)
    assert (done.returncode, told in done.stderr) == (code, True)
    assert code == 1 or len(done.stderr.splitlines()) == 1


NUMBERS = sorted(errno.errorcode)


def test_any_error_of_the_system_is_one_line_with_its_cause_its_file_and_advice(tmp_path: Path):
    for number in NUMBERS:
        error = OSError(number, os.strerror(number), str(tmp_path / "file"))
        line = expected(error)
        assert isinstance(line, DiskError | InputError), number
        assert isinstance(line, InputError) == (number in storage.OF_PATHS), number
        start = f"{tmp_path}/file: {os.strerror(number)}"
        assert str(line).startswith(start), number
        assert len(str(line)) > len(start) + 10, number
        assert "\n" not in str(line)
        assert str(expected(OSError(number, os.strerror(number)))).startswith("a system call: "), number


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "bytes free): make room there"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENFILE, "fs.file-max"),
        (errno.ESTALE, "run the same command again"),
        (errno.EHOSTDOWN, "server does not answer"),
        (errno.ENAMETOOLONG, "shorter"),
        (errno.ELOOP, "symbolic links"),
        (errno.ENOMEM, "memory"),
        (errno.EXDEV, "local disk"),
        (errno.ETXTBSY, "program that runs"),
    ],
)
def test_advice_fits_the_error(number: int, advice: str, tmp_path: Path):
    line = str(expected(OSError(number, os.strerror(number), str(tmp_path))))
    assert advice in line
    assert ("make room" in line) == (number == errno.ENOSPC)


def test_an_error_without_a_number_is_told_in_its_own_words_and_one_without_a_file_names_the_code():
    assert str(expected(OSError("image file is truncated"))) == "a system call: image file is truncated"
    with pytest.raises(OSError, match="Bad file descriptor") as raised:
        os.close(10**6)
    assert str(expected(raised.value)).startswith("a system call (test_errors.py:")


def test_bugs_keep_their_traceback():
    for bug in (io.UnsupportedOperation("not readable"), TimeoutError(), OSError(), ValueError("x"), KeyError("x")):
        assert expected(bug) is None
    assert expected(ConnectionResetError("Caught ConnectionResetError in DataLoader worker process 0.\n...")) is None


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)", "--shm-size"),
        ("Too many open files. Communication with the workers is no longer possible.", "ulimit -n"),
        ("received 0 items of ancdata", "ulimit -n"),
        ("can't start new thread", "ulimit -u"),
    ],
)
def test_what_torch_says_of_a_refused_call_is_a_line_too(text: str, advice: str):
    line = expected(RuntimeError(text))
    assert isinstance(line, LoaderError)
    assert advice in str(line)
    assert expected(RuntimeError("unable to find an engine")) is None
