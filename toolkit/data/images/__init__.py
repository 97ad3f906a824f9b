"""One image at a time, and batches on the device: headers, decoding, cropping, augmentation, normalized views.

A new augmentation is a method of `augment` keyed by (seed, epoch, image). Never: where an image lies, or workers.
"""
