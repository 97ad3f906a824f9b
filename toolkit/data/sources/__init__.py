"""Data sources: folders, manifests, shards, Hugging Face data sets, the built-in data; each split becomes one `Index`.

A new source is a module that returns `Found`, a kind in `detect.py`, and a line in `splits.py`. Never: pixels, sample
order, or batches.
"""
