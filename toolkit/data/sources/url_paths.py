"""Images at URLs that are named on a command line: an object, or all images under a folder of an object store."""

from toolkit.data.sources.listing import Listing, is_image
from toolkit.system.errors import BadSampleError, InputError, LoaderError
from toolkit.system.stores import EXTRAS, query
from toolkit.system.system_files import is_system


def search_url(url: str) -> Listing | None:
    """The files under a URL, named below it; None for a single file, or if nothing is there.

    Raises InputError if the store does not answer. Only object stores have folders.
    """
    if url.split("://")[0] not in EXTRAS:
        return None

    def below(root: str, names: list[str]) -> list[str]:
        return sorted(name.removeprefix(root).lstrip("/") for name in names if not name.endswith("/"))

    try:
        found = query(url.rstrip("/"), lambda there, path: below(path, there.find(path)))
    except FileNotFoundError:
        return None
    if found in ([], [""]):
        return None
    listing = Listing([], [], {}, [], [])
    for name in sorted(found, key=lambda name: name.split("/")):
        hidden = any(is_system(part) for part in name.split("/"))
        kind = listing.system if hidden else listing.images if is_image(name) else listing.others
        kind.append(name)
    return listing


def read_url(url: str) -> bytes:
    """The content of a file; raises BadSampleError if it is not there, LoaderError if the store fails."""
    try:
        return query(url, lambda there, path: there.cat_file(path))
    except FileNotFoundError:
        raise BadSampleError(url, "No such file") from None
    except InputError as error:
        raise LoaderError(f"{error} (the store failed, not the image)") from None
