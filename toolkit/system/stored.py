"""What a store says of a file or object: its size, its version, and when it was written. Imports no torch."""

import base64
import contextlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

# storage metadata that changes with the content, the most reliable first
VERSION_KEYS = ("generation", "ETag", "etag", "LastModified", "last_modified", "modificationTime", "mtime")
MODIFIED_KEYS = ("LastModified", "last_modified", "updated")


class FileVersion(NamedTuple):
    """Size of a file in bytes, and a text that changes with its content."""

    size: int
    version: str

    @classmethod
    def of(cls, entry: Mapping[str, Any], keys: Iterable[str] = VERSION_KEYS) -> "FileVersion":
        """The version from a storage's metadata, by the first of `keys` in it."""
        known = ((key, str(entry.get(key) or "").strip('"')) for key in keys)  # Azure quotes a tag only in some replies
        return cls(entry["size"], next((f"{key} {value}" for key, value in known if value), ""))

    def fit(self, entry: Mapping[str, Any]) -> bool:
        """Whether the current metadata matches this version, as far as the storage gives it."""
        now = FileVersion.of(entry, [self.version.split(" ")[0]])
        return self.size == now.size and now.version in ("", self.version)


class Stored(NamedTuple):
    """What a store says of an object. `modified`: seconds by the store's clock; `md5`: in hex; None if unknown."""

    version: FileVersion
    modified: float | None
    md5: str | None

    @property
    def size(self) -> int:
        return self.version.size

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "Stored":
        return cls(FileVersion.of(entry), _modified(entry), _md5(entry))


def _modified(entry: Mapping[str, Any]) -> float | None:
    for value in filter(None, map(entry.get, MODIFIED_KEYS)):
        with contextlib.suppress(ValueError):
            return (value if isinstance(value, datetime) else datetime.fromisoformat(str(value))).timestamp()
    return None


def _md5(entry: Mapping[str, Any]) -> str | None:
    """As Google's store and Azure's have it; an ETag of S3 is one only in some cases."""
    if text := entry.get("md5Hash"):
        return base64.b64decode(text).hex()
    of_azure = (entry.get("content_settings") or {}).get("content_md5")
    return bytes(of_azure).hex() if of_azure else None
