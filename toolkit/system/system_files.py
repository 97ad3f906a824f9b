"""Names that systems, file shares and tools leave in folders: no data, whatever their content. Imports no torch."""

import re
from collections import Counter
from collections.abc import Iterable

MOST_NAMES = 3  # that a message lists

# Besides what begins with a dot (.DS_Store, ._photo.jpg, .git, .Trash-1000, .stfolder, .@__thumb). Lower case.
NAMES = frozenset(
    {
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini"),  # Windows
        *(
            "$recycle.bin",
            "recycler",
            "system volume information",
            "$av_avg",
            "$av_asw",
            "dfsrprivate",
            "_vti_cnf",
            "_vti_pvt",
        ),
        *(
            "icon\r",
            "icon\uf00d",
            "network trash folder",
            "temporary items",
            "ipod photo cache",
        ),  # macOS; \uf00d: by a share
        *("lost+found", "lost.dir"),  # Linux, Android
        *("@eadir", "@tmp", "@sharebin", "@sharesnap", "#recycle", "#snapshot", "~snapshot"),  # Synology, NetApp
        *("@recycle", "@recently-snapshot", "@__thumb"),  # QNAP
        *("__pycache__", "_svn", "_recycle"),
    }
)
# :2e: a dot as netatalk writes it; ~$: an open document of Office; __macosx: also "__MACOSX 2", unpacked again.
STARTS = (".", ":2e", "paxheaders", "~$", "__macosx", "@syno", "#syno", "@gmt-")
ENDS = (
    ":zone.identifier",
    "@synoeastream",
    "@synoresource",
    ".lrdata",
)  # streams that became files; Lightroom's previews
FOUND = re.compile(r"found\.\d{3}")  # of Windows' chkdsk


def is_system(name: str) -> bool:
    """Whether a file or folder of this name, without its parents', is hidden or a system file; the case is ignored."""
    name = name.lower()
    return name in NAMES or name.startswith(STARTS) or name.endswith(ENDS) or bool(FOUND.fullmatch(name))


def is_never_data(path: str) -> bool:
    """Whether not even a list that names this path means it: a thumbnail in @eaDir, a ._photo.jpg.

    Other hidden files and folders may be meant.
    """
    parts = path.split("/")
    return any(is_system(part) and not part.startswith(".") for part in parts) or parts[-1].startswith("._")


def describe_system(paths: Iterable[str]) -> str:
    """System files by number, and the most frequent names; empty without any."""
    names = Counter(path.rsplit("/", 1)[-1] for path in paths)
    listed = [name.strip() for name, _ in names.most_common(MOST_NAMES)]
    more = ", ..." if len(names) > MOST_NAMES else ""
    files = "file" if names.total() == 1 else "files"
    return f"{names.total()} hidden or system {files} ({', '.join(listed)}{more})" if names else ""
