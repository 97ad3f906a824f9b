"""Transforms that make trouble in a loader process once called so often; a trial before the run calls 8 times."""

import os
import signal
import time
from typing import Any

calls = 0


def fill(image: Any) -> Any:
    """Fill /dev/shm."""
    global calls
    calls += 1
    if calls > 9:
        handle = os.open("/dev/shm/filled", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            while os.write(handle, bytes(4096)):
                pass
        except OSError:
            pass
        os.close(handle)
    return image


def hang(image: Any) -> Any:
    """Read from a storage that does not answer any more, while the run is asked to stop."""
    global calls
    calls += 1
    if calls > int(os.environ["HANG_AT"]):
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(1000)
    return image
