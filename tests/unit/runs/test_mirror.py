"""A run's directory and its store: what is there can be resumed, wherever sending it is interrupted.

The store is a real S3 server, which writes down every request.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from tests import storage as servers
from tests.storage import FORBIDDEN, Request, Storage
from toolkit import InputError, Settings
from toolkit.runs import checkpoint
from toolkit.runs.checkpoint import Store
from toolkit.runs.committed import WENT_BACK
from toolkit.runs.mirror import layout
from toolkit.runs.mirror.place import place_of
from toolkit.runs.mirror.pull import pull
from toolkit.runs.mirror.push import Push, Pushed
from toolkit.runs.mirror.writer import Writer, read_note
from toolkit.system.errors import StoreError
from toolkit.system.stores import ObjectStore

KEEP = 2


@pytest.fixture(scope="module")
def storage() -> Iterator[Storage]:
    with servers.s3() as opened:
        yield opened


@pytest.fixture(autouse=True)
def _open(storage: Storage) -> Iterator[None]:
    yield
    storage.gate, storage.after = lambda _: True, lambda _: None


class Run:
    """A run's directory as training leaves it: each checkpoint comes after the records that it needs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, Store(folder / "checkpoints", KEEP)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("strategy: single\n")

    def save(self, step: int, content: int, best: int | None = None) -> None:
        (self.folder / "samples.jsonl").write_text("".join(f'{{"step": {i}}}\n' for i in range(step)))
        tensors = {"weight": torch.full((3,), float(content))}
        self.store.commit(step, {"model.safetensors": tensors, "trainer.json": {"step": step}}, {"best_step": best})

    def go_back(self, step: int) -> None:
        self.store.go_back_to(self.store.path(step))
        (self.folder / WENT_BACK).write_text(f"step-{step:09d}\n")


@contextmanager
def pushing(url: str, run: Run) -> Iterator[Push]:
    """What sends a run, with the right to."""
    store = ObjectStore(url)
    writer = Writer(store)
    writer.claim(())
    yield Push(store, run.folder, KEEP, writer, Pushed.find(store, store.list(), writer))
    writer.release()


def send(url: str, run: Run) -> None:
    with pushing(url, run) as push:
        push.run(everything=True)


def pulled(url: str, folder: Path, step: int | None = None) -> tuple[int, float, int] | None:
    """Step and content of the checkpoint that a fresh machine goes on from, and for how many steps it has records."""
    store = ObjectStore(url)
    objects = store.list()
    if "config.yaml" not in objects:
        assert not layout.committed(objects)
        return None
    folder.mkdir()
    pull(store, objects, folder, step)
    found = Store(folder / "checkpoints").recover()
    if found is None:
        return None
    weights: Any = checkpoint.load(found, ["model.safetensors"])["model.safetensors"]
    lines = (folder / "samples.jsonl").read_text().splitlines()
    return checkpoint.step_of(found), float(weights["weight"][0]), len(lines)


def repeat(url: str, request: Request, source: str) -> None:
    """Do what a request to the folder `source` did, at another URL."""
    there, root = fsspec.core.url_to_fs(url)
    name = f"{root}/{request.key.partition(f'/{source}/')[2]}"
    if request.method == "DELETE":
        there.rm_file(name)
    elif copied := request.headers.get("x-amz-copy-source"):
        there.cp_file(f"{root}/{copied.partition(f'/{source}/')[2]}", name)
    else:
        there.pipe_file(name, request.content)


@pytest.mark.slow
def test_what_is_in_the_store_can_be_resumed_after_every_request(storage: Storage, tmp_path: Path):
    requests: list[Request] = []
    storage.after = lambda request: requests.append(request) if request.writes else None
    run = Run(tmp_path / "run")
    ends: list[tuple[int, tuple[int, float]]] = []  # requests so far, and the step and content that are then there

    def sent(step: int, content: float) -> None:
        send("s3://bucket/every", run)
        ends.append((len(requests), (step, content)))

    for step in (5, 10, 15, 20):
        run.save(step, step, best=5)
        sent(step, step)
    run.save(20, 21, best=5)  # the same step again, as after a stop within an evaluation
    sent(20, 21)
    run.go_back(15)
    run.save(18, 180, best=5)
    (run.folder / "summary.json").write_text("{}")
    sent(18, 180)
    storage.after = lambda _: None

    assert len(requests) > 60
    there = [None, *(found for _, found in ends)]
    for number, request in enumerate(requests, 1):
        repeat("s3://bucket/again", request, "every")
        found = pulled("s3://bucket/again", tmp_path / f"fresh-{number}")
        assert found is None or found[2] >= found[0]  # the records hold all that came before
        state = None if found is None else found[:2]
        done = next(i for i, (count, _) in enumerate(ends) if number <= count)
        gone_back = [(15, 15.0)] if done == len(ends) - 1 else []  # and nothing new is there yet
        assert state in [*there[done : done + 2], *gone_back], (number, request.method, request.key)
        assert number < ends[done][0] or state == there[done + 1]
        assert state == there[-1] or not (tmp_path / f"fresh-{number}/summary.json").exists()
    assert state == (18, 180.0)
    left = ObjectStore("s3://bucket/again").list()
    assert left.keys() == ObjectStore("s3://bucket/every").list().keys()
    kept = [layout.step_folder(step) for step in (5, 15, 18)]
    assert layout.committed(left) == kept
    assert not layout.leftovers(left, kept)
    assert any(".replaced-step-000000020" in key for key in left)


@pytest.mark.slow
def test_an_upload_goes_on_where_it_was_interrupted(storage: Storage, tmp_path: Path):
    run, url = Run(tmp_path / "run"), "s3://bucket/part"
    run.save(5, 1)
    sent: list[str] = []

    def gate(request: Request) -> object:
        return FORBIDDEN if request.method == "PUT" and request.key.endswith("MANIFEST.json") else True

    with pushing(url, run) as push:
        storage.gate = gate
        storage.after = lambda request: sent.append(request.key) if request.method == "PUT" else None
        with pytest.raises(StoreError, match="Forbidden"):
            push.run(everything=False)
        assert pulled(url, tmp_path / "before") is None
        storage.gate = lambda _: True
        push.run(everything=False)
    again = [key for key in sent if sent.count(key) > 1]
    assert {*again} <= {key for key in sent if key.endswith(".writer.json")}
    assert pulled(url, tmp_path / "after") == (5, 1.0, 5)


@pytest.mark.slow
def test_whatever_fails_is_done_when_it_is_tried_again(storage: Storage, tmp_path: Path):
    """Each request is refused once, of the same step saved again and of going back, and sending is tried again."""
    total = 0
    for number in range(200):
        run, url, seen = Run(tmp_path / f"run-{number}"), f"s3://bucket/again-{number}", [0]
        for step in (5, 10):
            run.save(step, step)
        send(url, run)
        run.save(15, 15)
        send(url, run)
        run.save(15, 16)
        refused: list[Request] = []

        def gate(
            request: Request, seen: list[int] = seen, refused: list[Request] = refused, due: int = number
        ) -> object:
            seen[0] += request.writes
            if request.writes and seen[0] == due + 1 and not refused:
                refused.append(request)
                return FORBIDDEN
            return True

        with pushing(url, run) as push:
            storage.gate = gate
            for _ in range(2):
                with suppress(StoreError):
                    push.run(everything=True)
            found = pulled(url, tmp_path / f"first-{number}")
            assert found == (15, 16.0, 15), refused
            run.go_back(10)
            run.save(12, 120)
            for _ in range(2):
                with suppress(StoreError):
                    push.run(everything=True)
            total = seen[0]
            storage.gate = lambda _: True
        assert pulled(url, tmp_path / f"second-{number}") == (12, 120.0, 12), refused
        if not refused:
            break
    assert number > 30
    assert number == total


def test_a_damaged_checkpoint_is_passed_over_and_all_damaged_are_refused(storage: Storage, tmp_path: Path, caplog):
    run, url = Run(tmp_path / "run"), "s3://bucket/damaged"
    for step in (5, 10):
        run.save(step, step)
        send(url, run)
    there, root = fsspec.core.url_to_fs(url)
    name = f"{root}/checkpoints/step-000000010/model.safetensors"
    there.pipe_file(name, bytes(len(there.cat_file(name))))
    assert pulled(url, tmp_path / "first") == (5, 5.0, 10)
    assert "model.safetensors was changed since it was saved; the one before it is used" in caplog.text
    there.rm_file(f"{root}/checkpoints/step-000000005/trainer.json")
    with pytest.raises(InputError, match=f"{url}/checkpoints: every checkpoint is damaged"):
        pulled(url, tmp_path / "second")


def test_an_object_that_arrives_short_is_noticed_before_the_marker(storage: Storage, tmp_path: Path):
    run, url = Run(tmp_path / "run"), "s3://bucket/short"
    run.save(5, 1)
    there, root = fsspec.core.url_to_fs(url)

    def gate(request: Request) -> bool:
        if request.method == "PUT" and request.key.endswith("MANIFEST.json"):
            storage.gate = lambda _: True
            there.pipe_file(f"{root}/checkpoints/step-000000005/model.safetensors", b"short")
        return True

    with pushing(url, run) as push:
        storage.gate = gate
        with pytest.raises(StoreError, match=r"model\.safetensors has 5 bytes instead of"):
            push.run(everything=False)
        assert pulled(url, tmp_path / "before") is None
        push.run(everything=False)
    assert pulled(url, tmp_path / "after") == (5, 1.0, 5)


def test_another_writer_is_noticed_before_the_marker(storage: Storage, tmp_path: Path):
    run, url = Run(tmp_path / "run"), "s3://bucket/lost"
    run.save(5, 1)
    store = ObjectStore(url)
    with pushing(url, run) as push:
        push.right.begin()
        note = read_note(store)
        assert note is not None
        store.write(layout.WRITER, replace(note, token="another").to_bytes())
        with pytest.raises(StoreError, match="another machine has taken over"):
            push.run(everything=True)
    assert not layout.committed(store.list())
    assert read_note(store) == replace(note, token="another")


def test_records_that_are_gone_here_go_there_and_what_was_never_here_stays(storage: Storage, tmp_path: Path):
    run, url = Run(tmp_path / "run"), "s3://bucket/records"
    for name in ("summary.json", "wandb/run-1.wandb", ".lock", ".owner.json", ".dashboard-wandb.json", ".tmp-12-a"):
        (run.folder / name).parent.mkdir(exist_ok=True)
        (run.folder / name).write_text(name)
    ObjectStore(url).write("evaluation/evaluation.txt", b"of another machine")
    names = {
        ".writer.json",
        "config.yaml",
        "summary.json",
        "wandb/run-1.wandb",
        ".dashboard-wandb.json",
        "evaluation/evaluation.txt",
    }
    with pushing(url, run) as push:
        push.run(everything=True)
        assert ObjectStore(url).list().keys() == names
        (run.folder / "summary.json").unlink()
        push.run(everything=True)
    assert ObjectStore(url).list().keys() == names - {"summary.json"}


def local_folder(url: str, cache: Path, **settings: Any) -> Path:
    """Where a run at a URL is here, once it was looked at."""
    place = place_of(Settings(output_dir=url, cache_dir=cache, log_with="none", **settings))
    place.look()
    folder = place.settings.output_dir
    assert isinstance(folder, Path)
    return folder


def test_the_checkpoint_that_resume_names_is_fetched_besides_the_newest(storage: Storage, tmp_path: Path):
    run, url = Run(tmp_path / "run"), "s3://bucket/named"
    for step in (5, 10):
        run.save(step, step)
        send(url, run)
    assert steps(local_folder(url, tmp_path / "one")) == [10]
    named = f"{url}/checkpoints/step-000000005"
    assert steps(local_folder(url, tmp_path / "two", resume=named)) == [5, 10]


def steps(folder: Path) -> Sequence[int]:
    return [checkpoint.step_of(path) for path in Store(folder / "checkpoints").committed()]


def test_a_look_changes_nothing_in_the_store(storage: Storage, tmp_path: Path):
    run, url = Run(tmp_path / "run"), "s3://bucket/look"
    run.save(5, 1)
    send(url, run)
    before = ObjectStore(url).list()
    assert steps(local_folder(url, tmp_path / "cache")) == [5]
    assert steps(local_folder(url, tmp_path / "cache")) == [5]
    assert ObjectStore(url).list() == before
