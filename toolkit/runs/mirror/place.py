"""Where a run lives: in a local directory, or in one that stands for a URL while the run is here."""

import contextlib
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from toolkit.config.data_roots import is_url
from toolkit.config.settings import Settings
from toolkit.runs.mirror import layout
from toolkit.runs.mirror.layout import FileState
from toolkit.runs.mirror.pull import pull
from toolkit.runs.mirror.sender import Job
from toolkit.runs.mirror.state import State
from toolkit.runs.mirror.uploader import Uploader
from toolkit.runs.mirror.writer import Note, Writer, read_note
from toolkit.system import console, files, locks, run_urls, storage, stores
from toolkit.system.errors import InputError, StoreError
from toolkit.system.locks import Lock
from toolkit.system.stored import Stored
from toolkit.system.stores import START_S, ObjectStore, within

log = logging.getLogger(__name__)

RELEASE_S = 10.0  # longest wait at the end of a run for the store to take its last note


class Place:
    """A local directory: there is nothing to fetch and nothing to send. `settings`: with local paths.

    `to_share`: what to do where not all machines see the directory.
    """

    to_share = "give a folder on storage that all machines share, under the same path"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def look(self) -> None:
        """Make what the run has saved readable here, changing nothing elsewhere. Raises InputError."""

    def open(self) -> None:
        """The same, and take the right to write there. Raises InputError."""

    def settle(self) -> str:
        """Bring everything to where the run lives; returns why it could not, in one line; else empty."""
        return ""

    def close(self) -> None:
        """End the right to write."""


def place_of(settings: Settings, lost: Callable[[str], object] = lambda _: None) -> Place:
    """Where the run of --output-dir or --resume lives; `lost`: called if another machine takes it over."""
    url = settings.run_url
    return Place(settings) if url is None else Mirror(settings, url, lost)


class Mirror(Place):
    """A local directory, in the cache, that stands for a URL; all of it happens on rank 0."""

    to_share = "put the cache, in which the run is while it trains, on shared storage: --cache-dir"

    def __init__(self, settings: Settings, url: str, lost: Callable[[str], object]) -> None:
        cache = settings.cache_dir
        self._folder = run_urls.mirror_folder(url, cache)
        self._store, self._keep, self._wait_s = ObjectStore(url), settings.keep, settings.upload_wait_s
        self._step = None if not is_url(settings.resume) else run_urls.step_in(settings.resume)
        self._flag = f"{'--output-dir' if isinstance(settings.output_dir, str) else '--resume'} {url}"
        self._lost = lost
        self._lock = Lock(self._folder.parent / ".lock")
        self._state_file = self._folder.parent / "mirror.json"
        self._uploader: Uploader | None = None
        console.show_as(str(self._folder), url)
        own: dict[str, Any] = {}
        if isinstance(settings.output_dir, str):
            own["output_dir"] = run_urls.mirror_folder(settings.output_dir, cache)
        if is_url(settings.resume):
            own["resume"] = str(run_urls.local_resume(settings.resume, cache))
        super().__init__(settings.model_copy(update=own))

    def look(self) -> None:
        with self._in_words():
            self._take_folder()
            try:
                objects = within(START_S, self._store.list)
                self._reconcile(objects, read_note(self._store))
            finally:
                self._lock.release()

    def open(self) -> None:
        with self._in_words():
            self._take_folder()
            try:
                self._open()
            except BaseException:
                self.close()
                raise

    def _open(self) -> None:
        store, writer = self._store, Writer(self._store)
        within(START_S, store.list)  # before anything is written there
        known = State.read(self._state_file).authors
        found = within(START_S, lambda: writer.claim(known), store)
        try:
            self._reconcile(store.list(), found, writer.note.token)
        except BaseException:
            within(RELEASE_S, writer.release)
            raise
        note = writer.note.to_bytes().decode()
        job = Job(store.url, str(self._folder), self._keep, str(self._state_file), note)
        self._uploader = Uploader(job, self._lost)
        log.info("output    %s, sent there from %s while it trains", store.url, self._folder)

    def settle(self) -> str:
        if self._uploader is None or not (reason := self._uploader.settle(self._wait_s)):
            return ""
        size = f"{self._uploader.left() / 1e6:.1f} MB"
        if self._uploader.is_lost:
            return f"{size} are in {self._folder} only: another machine has taken over {self._store.url}"
        return (
            f"{size} are not in {self._store.url} ({reason}), but in {self._folder} on this machine; the same command "
            "uploads them from here"
        )

    def close(self) -> None:
        if self._uploader is not None:
            self._uploader.close()
        self._lock.release()

    @contextlib.contextmanager
    def _in_words(self) -> Any:
        """Errors of the store as one line that names the flag."""
        try:
            yield
        except StoreError as error:
            advice = "are the name, the credentials and the network right?"
            raise InputError(f"{self._flag}: {error}; {advice}") from None
        except FileNotFoundError as error:
            if Path(str(error.filename or "")).is_absolute():  # a file of this machine
                raise
            raise InputError(f"{self._flag}: there is no such bucket: make it first") from None

    def _take_folder(self) -> None:
        """Lock the local directory; raises InputError if another run of this machine uses it."""
        if missing := stores.missing_extra(self._store.url):
            raise InputError(f"{self._flag}: needs a package that is not installed: {missing}")
        place = self._folder.parent
        try:
            files.make_folders(place)
            files.try_folder(place)
        except InputError as error:
            told = str(error).removeprefix(f"--output-dir {place}: ")
            raise InputError(f"{place}: {told}; --cache-dir names another place") from None
        except OSError as error:
            raise InputError(f"{storage.line(error, place)}; --cache-dir names another place") from None
        if not self._lock.acquire() and not (locks.may_take_over() and self._lock.take_over()):
            holder = self._lock.holder()
            told = f" ({holder})" if holder else ""
            raise InputError(f"{self._flag}: another run is using it{told}; wait for it, or choose another")

    def _reconcile(self, objects: Mapping[str, Stored], note: Note | None, own: str = "") -> None:
        """Keep the local directory if nobody else wrote into the store since, else fetch what is there.

        `note`: of who wrote there last; `own`: the token of this start. Once it is in the state, the directory is not
        outdated, even if this process is killed.
        """
        state = State.read(self._state_file)
        author = note.author if note else None
        last = {author, note.token} if note else set[str | None]()
        if self._folder.exists() and note and (last & {*state.authors} or author is None):
            known = state.records.items()
            records = {key: sent for key, sent in known if key in objects and objects[key].size == sent.size}
        else:
            self._leave_behind(objects, state)
            records = self._fetched(objects)
        State(tuple(filter(None, (author, own))), records).write(self._state_file)

    def _fetched(self, objects: Mapping[str, Stored]) -> dict[str, FileState]:
        """Fetch the run, if there is one; returns its records."""
        there = [key for key in objects if layout.is_record(key) or key.startswith(layout.CHECKPOINTS)]
        if there and "config.yaml" not in objects:
            raise InputError(f"{self._flag}: there are other files, such as {sorted(there)[0]}; give another place")
        if not there:
            return {}
        fresh = self._folder.with_name(f".tmp-{self._folder.name}")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        within(START_S, lambda: pull(self._store, objects, fresh, self._step), self._store)
        fresh.rename(self._folder)
        return dict(layout.records(self._folder))

    def _leave_behind(self, objects: Mapping[str, Stored], state: State) -> None:
        """Make room for what the store has; a local directory that holds more than was sent is kept beside."""
        if not self._folder.exists():
            return
        sent = {layout.step_of(name) for name in layout.committed(objects)}
        steps = {layout.step_of(path.name) for path in (self._folder / layout.CHECKPOINTS).glob("step-*")}
        newer = max(steps, default=-1) > max(sent, default=-1)
        if not newer and dict(layout.records(self._folder)) == state.records:
            shutil.rmtree(self._folder)
            return
        kept = files.free_name(self._folder.with_name(f"{self._folder.name}.left"))
        self._folder.rename(kept)
        log.warning(
            "%s was written by another machine since, or emptied: what this one had not sent is kept in %s",
            *(self._store.url, kept),
        )
