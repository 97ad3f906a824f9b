"""From files to batches, in three parts; each imports only from those before it.

`images/`: file bytes to pixels to augmented views. `sources/`: finds the images of a data set and builds one index per
split. `loading/`: sample order, batches, workers, caches. A new data source, augmentation or cache goes here. Never: a
model, an optimizer, or anything that depends on training state.
"""
