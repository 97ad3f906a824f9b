"""What an error says, in one line."""

import pytest

from toolkit.system.errors import first_line


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
