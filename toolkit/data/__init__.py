"""From files to batches, in three parts, each of which knows those before it.

`images/`: bytes to pixels to augmented views. `sources/`: where images lie, read into one index per split. `loading/`:
order, batches, workers, caches. A new data source, augmentation or cache goes here. Never: a model, an optimizer, or
anything that depends on what was learned.
"""
