"""The built-in data as a source: drawn once, then read as folders."""

from toolkit.config.data_roots import BUILT_IN, SYNTHETIC
from toolkit.data.sources import synthetic
from toolkit.data.sources.base import Source, SourceOptions
from toolkit.data.sources.folders import read_folders
from toolkit.data.sources.index import Found


class BuiltInSource(Source):
    """`synthetic` and `characters`."""

    def recognizes(self, data_root: str) -> bool:
        return data_root in BUILT_IN

    def read(self, data_root: str, options: SourceOptions) -> Found:
        size = options.synthetic_size or options.largest
        count = options.synthetic_count or synthetic.drawing(data_root).COUNT
        root = synthetic.prepare(size, count, name=data_root, classes=options.synthetic_classes)
        kind = "built-in" if data_root == SYNTHETIC else f"built-in {data_root}"
        return read_folders(root, options.cache)._replace(name=f"{kind}, {size} px")
