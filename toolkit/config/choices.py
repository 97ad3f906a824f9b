"""Values that both a flag and the code behind it name. Free of torch."""

from typing import Literal

Format = Literal["safetensors", "onnx", "pt2"]  # of an export
Precision = Literal["float32", "bf16", "fp16"]
Split = Literal["train", "val", "test"]

CACHE_GB = 4.0  # most that parts of remote shards may take on disk
