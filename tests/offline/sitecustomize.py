"""No network in any Python process that has this folder on its PYTHONPATH: only this machine can be reached."""

import errno
import sys
from typing import Any

HERE = (None, "localhost", "127.0.0.1", "::1")


def _only_here(event: str, words: tuple[Any, ...]) -> None:
    if event == "socket.getaddrinfo":
        host = words[0]
    elif event == "socket.connect" and isinstance(words[1], tuple):  # else a file is the address
        host = words[1][0]
    else:
        return
    if host not in HERE:
        raise OSError(errno.ENETUNREACH, f"there is no network to reach {host}")


sys.addaudithook(_only_here)
