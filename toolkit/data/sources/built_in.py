"""The built-in data as a source: drawn once, then read as folders."""

from toolkit.config.data_roots import SYNTHETIC
from toolkit.data.sources import synthetic
from toolkit.data.sources.base import Source, SourceOptions
from toolkit.data.sources.folders import read_folders
from toolkit.data.sources.index import Found


class BuiltInSource(Source):
    """`synthetic`."""

    def recognizes(self, data_root: str) -> bool:
        return data_root == SYNTHETIC

    def read(self, data_root: str, options: SourceOptions) -> Found:
        size = options.synthetic_size or options.largest
        root = synthetic.prepare(size, options.synthetic_count or synthetic.COUNT)
        return read_folders(root, options.cache)._replace(name=f"built-in, {size} px")
