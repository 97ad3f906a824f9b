"""recipes/single_scale.py, for which a few images are a large data set: the order of an epoch is a shared file."""

import sys

from toolkit.commands import train_single
from toolkit.data.loading import pipeline

if __name__ == "__main__":
    pipeline.MIN_IMAGES = 1
    sys.exit(train_single.main(sys.argv[1:]))
