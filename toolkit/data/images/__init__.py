"""Single images, and batches on the device: headers, decoding, cropping, augmentation, normalized views.

`preprocess.py` is also written into exports, so it imports only NumPy and PIL. A new augmentation is a
method in `augment.py` keyed by (seed, epoch, image). Never: file locations or workers.
"""
