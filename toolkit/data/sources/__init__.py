"""Where images lie: folders, manifests, shards, Hugging Face data sets, the built-in data; all become one `Index`.

A new source is a module that returns `Found` and a line in `splits`. Never: pixels, order, or batches.
"""
