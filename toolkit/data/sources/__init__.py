"""Data sources: folders, manifests, shards, Hugging Face data sets, the built-in data; each split becomes one `Index`.

A new source is a subclass of `Source` in a module, and a line in `config/tables.py`. Never: pixels, sample order,
batches.
"""
