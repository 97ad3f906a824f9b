"""Paths that may be URLs: which flag takes which, checked before anything is opened. Imports no torch.

A local path is a `Path`, a URL is text. file:// names a local path. Three kinds of flags: `Folder` in `base` is local;
`RunPlace` is where a run lives, local or in an object store; `Readable` is whatever can be read.
"""

import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote

from pydantic import AfterValidator, BeforeValidator

from toolkit.config.data_roots import is_url
from toolkit.system.errors import InputError
from toolkit.system.places import expanded
from toolkit.system.stores import EXTRAS

FILE = "file://"
FOLDED = re.compile(r"(s3a?|gcs|gs|az|abfss?|https?|file):/?(?=[^/]|$)")  # what a shell's or pathlib's `//` became
SECRET = re.compile(r"//[^/]*:[^/]*@|[?#]")
NO_SECRETS = (
    "a URL must hold no password, token or query, for it is written down with the run: put credentials into the "
    "environment, as the storage's own tools want them"
)
LISTED = "s3://, gs:// or az:// (abfs://)"


def holds_secret(url: str) -> bool:
    """Whether a URL holds a user with a password, or a query, which may be a token."""
    return is_url(url) and SECRET.search(url) is not None


def without_secret(text: str) -> str:
    """A value for a message: a URL without its user and query."""
    return re.sub(r"//[^/@]*@", "//", re.sub(r"[?#].*", "", text)) if holds_secret(text) else text


def local_text(text: str) -> str:
    """A path as it is, and file:///PATH as PATH; raises ValueError for a URL that has lost a slash."""
    if text.startswith(FILE):
        path = unquote(text.removeprefix(FILE))
        if not path.startswith("/"):
            raise ValueError("a file:// URL names a path on this machine: file:///PATH, or just the path")
        return path
    if folded := FOLDED.match(text):
        raise ValueError(f"a slash is missing: {folded[1]}://...")
    return text


def local(value: Any) -> Any:
    """A local path; raises ValueError for a URL."""
    if not isinstance(value, str | Path):
        return value
    text = local_text(str(value))
    if is_url(text):
        raise ValueError("must be a local path, not a URL")
    return expanded(text)


def readable(value: Any) -> Any:
    """A local path, or the URL of something to read; raises ValueError for one that would be a secret."""
    if not isinstance(value, str | Path):
        return value
    text = local_text(str(value))
    if holds_secret(text):
        raise ValueError(NO_SECRETS)
    return text if is_url(text) else expanded(text)


def run_place(value: Any) -> Any:
    """A local path, or a URL in an object store; raises ValueError for any other."""
    place = readable(value)
    if not isinstance(place, str):
        return place
    scheme, _, rest = place.partition("://")
    bucket, *names = rest.rstrip("/").split("/")
    if scheme not in EXTRAS:
        raise ValueError(f"a run lives in a local folder or at {LISTED}, not at {scheme}://")
    if not bucket:
        raise ValueError(f"the bucket is missing: {scheme}://BUCKET/...")
    if {"", ".", ".."} & {*names}:
        raise ValueError("a name between two slashes must not be empty, . or ..")
    return place.rstrip("/")


def check_resume(url: str) -> None:
    """Raise InputError unless the URL of --resume may be one of a run."""
    try:
        run_place(url)
    except ValueError as error:
        raise InputError(f"--resume {without_secret(url)}: {error}") from None


def read_place(value: str) -> str:
    """The text of a path or a name, such as --data-root; a URL stays as it is."""
    return local_text(value)


DataRoot = Annotated[str, AfterValidator(read_place)]
RunPlace = Annotated[Path | str, BeforeValidator(run_place)]  # or a file; text is a URL
Readable = Annotated[Path | str, BeforeValidator(readable)]
