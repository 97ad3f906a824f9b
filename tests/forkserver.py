"""Python processes that start in a tenth of a second: a server that has imported torch, timm and accelerate forks them.

`Popen` and `run` take a command line as those of subprocess do. A script under plain Python is forked, with its own
arguments, folder, environment, descriptors and exit code. Everything else is started as it stands, and so is a script
whose environment differs where libraries read it while they are imported.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

# Prefixes of variables that are read at the start of Python or while libraries are imported.
READ_AT_IMPORT = (
    *("PYTHON", "LD_", "MALLOC_", "COVERAGE_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "HF_", "MPL", "TQDM_"),
    *("TORCH_", "PYTORCH_", "TIMM_", "TRANSFORMERS_", "XDG_", "HOME", "TZ"),
)
LONGEST = 16384  # bytes of a command line that /proc shows of a forked process


def read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    named = {name: value for name, value in environment.items() if name.startswith(READ_AT_IMPORT)}
    customized = any((Path(folder) / "sitecustomize.py").exists() for folder in python_path(environment))
    return {name: value for name, value in named.items() if name != "PYTHONPATH" or customized}


def python_path(environment: Mapping[str, str]) -> list[str]:
    return [folder for folder in environment.get("PYTHONPATH", "").split(os.pathsep) if folder]


class Server:
    """The process that forks; started when it is first needed, it ends with this one."""

    def __init__(self) -> None:
        self.environment = dict(os.environ)
        self._own: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def _started(self) -> socket.socket:
        with self._lock:
            if self._own is None:
                self._own, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                command = [sys.executable, __file__, str(theirs.fileno()), " " * LONGEST]
                options = {"pass_fds": [theirs.fileno()], "cwd": "/", "start_new_session": True}
                self._process = subprocess.Popen(command, env=self.environment, **options)
                theirs.close()
            return self._own

    def close(self) -> None:
        """End it, if it was started."""
        if self._own is not None and self._process is not None:
            self._own.close()
            self._process.wait()

    def fork(self, request: dict[str, Any], descriptors: Sequence[int]) -> tuple[int, IO[str]]:
        """A new process, and the pipe that tells how it ends. `descriptors`: its standard input, output and error."""
        reader, writer = os.pipe()
        report = os.fdopen(reader)
        try:
            text = json.dumps(request).encode()
            body = os.memfd_create("request")
            os.write(body, text)
            socket.send_fds(self._started(), [b"fork"], [body, writer, *descriptors])
            os.close(body)
        finally:
            os.close(writer)
        return int(report.readline()), report


_server: Server | None = None


@contextlib.contextmanager
def serving() -> Iterator[None]:
    """Processes can be forked within, in the environment that is there now."""
    global _server
    _server = Server()
    try:
        yield
    finally:
        _server.close()
        _server = None


def can_fork(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether the server may do it. A graphics driver would not outlive a fork."""
    import torch

    words = [word for word in command[:3] if word != "-u"]
    plain = words[0] == sys.executable and len(words) > 1 and words[1].endswith(".py")
    if not plain or _server is None or torch.cuda.is_available():
        return False
    return read_at_import(environment) == read_at_import(_server.environment)


class Forked:
    """A process of the server; what tests use of subprocess.Popen."""

    def __init__(
        self,
        args: Sequence[str],
        cwd: Path | str | None = None,
        env: Mapping[str, str] | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        text: bool = False,
        start_new_session: bool = False,
    ) -> None:
        assert text or subprocess.PIPE not in (stdout, stderr), "only text is read"
        self.args, self.returncode, self._reading = [*args], None, threading.Lock()
        self.stdout: IO[str] | None = None
        self.stderr: IO[str] | None = None
        ours: list[int] = []

        def descriptor(wanted: int | IO[Any] | None, own: int, name: str) -> int:
            if wanted is None:
                return own
            if wanted == subprocess.PIPE:
                reader, writer = os.pipe()
                setattr(self, name, os.fdopen(reader))
            elif wanted == subprocess.DEVNULL:
                writer = os.open(os.devnull, os.O_RDWR)
            else:
                return wanted if isinstance(wanted, int) else wanted.fileno()
            ours.append(writer)
            return writer

        out = descriptor(stdout, 1, "stdout")
        err = out if stderr == subprocess.STDOUT else descriptor(stderr, 2, "stderr")
        request = {
            "argv": [str(word) for word in args],
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "session": start_new_session,
        }
        try:
            assert _server is not None
            self.pid, self._report = _server.fork(request, [0, out, err])
        finally:
            for number in ours:
                os.close(number)

    def _wait(self, timeout: float | None) -> int | None:
        """The exit code; None if it still runs. Several threads may wait, so that none may hold the report for long."""
        deadline = time.monotonic() + (math.inf if timeout is None else timeout)
        while True:
            left = deadline - time.monotonic()
            with self._reading:
                if self.returncode is not None or self._told(min(max(left, 0), 0.05)):
                    return self.returncode
            if left <= 0:
                return None

    def _told(self, timeout: float) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(self._report, selectors.EVENT_READ)
            if not selector.select(timeout):
                return False
        told = self._report.readline()
        assert told, "the server is gone"
        self.returncode = int(told)
        self._report.close()
        return True

    def poll(self) -> int | None:
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        if self._wait(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str | None, str | None]:
        """All that it writes until it ends."""
        found: dict[str, str] = {}

        def read(name: str, stream: IO[str]) -> None:
            found[name] = stream.read()

        streams = {name: stream for name in ("stdout", "stderr") if (stream := getattr(self, name)) is not None}
        threads = [threading.Thread(target=read, args=pair, daemon=True) for pair in streams.items()]
        for thread in threads:
            thread.start()
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in threads:
            thread.join(None if deadline is None else max(0, deadline - time.monotonic()))
            if thread.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(None if deadline is None else max(0, deadline - time.monotonic()))
        for stream in streams.values():
            stream.close()
        return found.get("stdout"), found.get("stderr")

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()


def Popen(command: Sequence[str], env: Mapping[str, str] | None = None, **options: Any) -> Any:  # noqa: N802 - as there
    """A forked process where the server may start it, else one of subprocess."""
    environment = os.environ if env is None else env
    start: Callable[..., Any] = Forked if can_fork(command, environment) else subprocess.Popen
    return start(command, env=environment, **options)


def run(
    command: Sequence[str],
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    timeout: float | None = None,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """A command to its end, with what it wrote."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with Popen(command, env=env, cwd=cwd, **streams) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


PLACES = ("RANK", "LOCAL_RANK")
GRACE_S = 30  # between the signals that ask the other ranks to end and that end them, as torchrun has it


def run_ranks(
    words: Sequence[str], count: int = 2, cwd: Path | str | None = None, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """A script and its words in processes that know of each other as those of `torchrun --standalone` do.

    When one fails, the others are asked to end and the exit code is 1, as with torchrun.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    size = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "TORCHELASTIC_RUN_ID": "ranks"}
    place = {**size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    deadline = time.monotonic() + (timeout or 3600)
    pipes = [os.pipe() for _ in range(2)]
    texts = ["", ""]

    def read(i: int) -> None:
        with os.fdopen(pipes[i][0]) as stream:
            texts[i] = stream.read()

    readers = [threading.Thread(target=read, args=(i,), daemon=True) for i in range(2)]
    ranks: list[Any] = []
    try:
        for rank in range(count):
            environment = {**os.environ, **place, **{name: str(rank) for name in PLACES}}
            command = [sys.executable, *words]
            ranks.append(Popen(command, env=environment, cwd=cwd, stdout=pipes[0][1], stderr=pipes[1][1]))
        for _, writer in pipes:
            os.close(writer)
        for reader in readers:
            reader.start()
        while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
            assert time.monotonic() < deadline, f"it hangs: {texts}"
            time.sleep(0.05)
        for rank in ranks:
            rank.terminate()
        for rank in ranks:
            with contextlib.suppress(subprocess.TimeoutExpired):
                rank.wait(GRACE_S)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    for reader in readers:
        reader.join(GRACE_S)
    return subprocess.CompletedProcess([*words], int(any(rank.returncode for rank in ranks)), *texts)


# What follows runs in the server.


def show_command_line(argv: Sequence[str]) -> None:
    """Put a command line where /proc shows that of this process: tests look for processes by it."""
    first, last = map(int, Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[45:47])
    text = b"".join(os.fsencode(word) + b"\0" for word in argv)[: last - first - 1]
    ctypes.memmove(first, text.ljust(last - first, b"\0"), last - first)


def become(request: dict[str, Any], descriptors: Sequence[int]) -> types.CodeType:
    """Make this process look as if Python had just been started with a script; returns the script's code."""
    for finalizer in [*weakref.finalize._registry]:
        owner = (finalizer.peek() or [None])[0]
        if isinstance(owner, tempfile.TemporaryDirectory):  # of a library: each process removes its own at its end
            finalizer.detach()
            owner.__init__()
    if request["session"]:
        os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    for descriptor in descriptors:
        os.close(descriptor)
    os.chdir(request["cwd"])
    own, wanted = python_path(os.environ), [str(Path(folder).absolute()) for folder in python_path(request["env"])]
    sys.path[1:] = [*wanted, *(folder for folder in sys.path[1:] if folder not in own)]
    os.environ.clear()
    os.environ.update(request["env"])
    show_command_line(request["argv"])
    sys.orig_argv[:] = request["argv"]
    sys.argv[:] = [word for i, word in enumerate(request["argv"]) if i > 1 or (i and word != "-u")]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    sys.stdout.reconfigure(line_buffering=os.isatty(1) or request["argv"][1] == "-u")
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # the other generators see to that themselves
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=sys.argv[0], __builtins__=__builtins__)
    sys.modules["__main__"] = main
    return compile(Path(sys.argv[0]).read_bytes(), sys.argv[0], "exec")


def serve(channel: socket.socket) -> types.CodeType | None:
    """Fork for whoever asks and tell how each ends; returns None at the end, and in a new process its code."""
    selector = selectors.DefaultSelector()
    selector.register(channel, selectors.EVENT_READ)
    open_ = True
    while open_ or len(selector.get_map()) > 1:
        for key, _ in selector.select():
            if key.fileobj is not channel:
                pidfd, (pid, report) = key.fd, key.data
                selector.unregister(pidfd)
                os.close(pidfd)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(BrokenPipeError):
                    os.write(report, f"{code}\n".encode())
                os.close(report)
                continue
            message, received, _, _ = socket.recv_fds(channel, 16, 5)
            if not message:
                return None
            body, report, *descriptors = received
            with os.fdopen(body, "rb") as file:
                file.seek(0)
                request = json.loads(file.read())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # some library's threads wait for work: none runs any code
                pid = os.fork()
            if not pid:
                os.close(report)
                for other in selector.get_map().values():
                    if other.fileobj is not channel:
                        os.close(other.fd)
                        os.close(other.data[1])
                selector.close()
                channel.close()
                return become(request, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            os.write(report, f"{pid}\n".encode())
            selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, report))
    return None


if __name__ == "__main__":
    for name in ("torch", "timm", "accelerate"):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else the collector would copy the pages of all that is imported in each process
    code = serve(socket.socket(fileno=int(sys.argv[1])))
    if code is not None:
        exec(code, sys.modules["__main__"].__dict__)
