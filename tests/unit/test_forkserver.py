"""A forked process is what one of subprocess would be; what the server may not start is started as it stands."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import forkserver

PROBE = """
import atexit, json, os, random, signal, sys
atexit.register(print, "at its end")
json.dump({
    "argv": sys.argv, "cwd": os.getcwd(), "path": sys.path, "environment": dict(os.environ), "name": __name__,
    "file": __file__, "main": sys.modules["__main__"].__dict__ is globals(), "spec": __spec__,
    "handlers": [str(signal.getsignal(number)) for number in range(1, 32)], "children": os.path.isdir("/proc/self"),
    "command": open("/proc/self/cmdline").read().rstrip(chr(0)), "descriptors": sorted(os.listdir("/proc/self/fd"))[:3],
}, sys.stdout)
print()
print("a warning", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""
FORKED = "import os, sys; print('torch' in sys.modules)"


def script(folder: Path, code: str) -> str:
    (folder / "script.py").write_text(code)
    return str(folder / "script.py")


@pytest.mark.parametrize("path", [None, "relative", "/absolute"])
def test_a_forked_script_sees_what_a_real_one_sees(tmp_path: Path, path: str | None):
    environment = {**os.environ, "ONE": "1"}
    environment.pop("PYTHONPATH", None)
    if path is not None:
        environment["PYTHONPATH"] = path
    command = [sys.executable, script(tmp_path, PROBE), "3", "two words", ""]
    real = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    forked = forkserver.run(command, cwd=tmp_path, env=environment)
    assert (forked.returncode, forked.stderr) == (real.returncode, real.stderr) == (3, "a warning\n")
    (first, second), (mine, own) = (done.stdout.splitlines() for done in (real, forked))
    assert second == own == "at its end"
    assert json.loads(mine) == json.loads(first)


@pytest.mark.parametrize(
    ("words", "env", "forked"),
    [
        ((), {}, True),
        (("-u",), {}, True),
        (("-X", "utf8"), {}, False),
        ((), {"OMP_NUM_THREADS": "7"}, False),
        ((), {"PYTHONWARNINGS": "error"}, False),
        ((), {"WANDB_MODE": "offline"}, True),
    ],
)
def test_only_what_libraries_cannot_have_read_is_forked(tmp_path: Path, words, env: dict[str, str], forked: bool):
    command = [sys.executable, *words, script(tmp_path, FORKED)]
    assert forkserver.run(command, env={**os.environ, **env}).stdout == f"{forked}\n"


def test_a_folder_with_a_sitecustomize_is_heeded(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text("print('mine')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert forkserver.run([sys.executable, script(tmp_path, FORKED)], env=environment).stdout == "mine\nFalse\n"


@pytest.mark.parametrize(("code", "status"), [("raise ValueError('wrong')", 1), ("", 0), ("import os; os.abort()", -6)])
def test_the_exit_code_is_the_script_s_own(tmp_path: Path, code: str, status: int):
    done = forkserver.run([sys.executable, script(tmp_path, code)])
    assert done.returncode == status
    assert done.stderr.endswith("ValueError: wrong\n") == (status == 1)


FOLDER = """
import os
from wandb.sdk.data_types._private import MEDIA_TMP
print(MEDIA_TMP.name, os.path.isdir(MEDIA_TMP.name))
MEDIA_TMP.cleanup()
"""


def test_each_process_has_temporary_folders_of_its_own_when_libraries_make_them(tmp_path: Path):
    """They are made when a library is imported, and removed at the end of the process."""
    first, second = (forkserver.run([sys.executable, script(tmp_path, FOLDER)]).stdout.split() for _ in range(2))
    assert first[0] != second[0]
    assert first[1] == second[1] == "True"
    assert not Path(second[0]).exists()


def test_a_process_can_be_watched_and_signaled(tmp_path: Path):
    command = [sys.executable, script(tmp_path, "import time\nprint('here', flush=True)\ntime.sleep(600)")]
    options = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    with forkserver.Popen(command, **options) as process:
        assert process.stdout.readline() == "here\n"
        assert process.poll() is None
        assert os.getpgid(process.pid) == process.pid
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.terminate()
        assert process.wait(60) == -signal.SIGTERM
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


def test_ranks_know_of_each_other_and_all_end_when_one_fails(tmp_path: Path):
    code = "import os, sys, time\nos.write(1, '{RANK} of {WORLD_SIZE}\\n'.format(**os.environ).encode())\n"
    done = forkserver.run_ranks([script(tmp_path, code)])
    assert (done.returncode, sorted(done.stdout.splitlines())) == (0, ["0 of 2", "1 of 2"])
    begin = time.monotonic()
    done = forkserver.run_ranks(
        [script(tmp_path, code + "sys.exit(9) if os.environ['RANK'] == '1' else time.sleep(99)")]
    )
    assert done.returncode == 1
    assert time.monotonic() - begin < 90
