"""Named choices that settings and other rooms share: the values that a setting may have, once. Free of torch."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

NormMode = Literal["full", "statistics", "off"]
NORM_MODES: tuple[str, ...] = get_args(NormMode)
ConsistencyForm = Literal["kl", "mse", "js"]
CacheKind = Literal["ram", "disk", "off"]
Format = Literal["safetensors", "onnx", "pt2"]  # of an export
Precision = Literal["float32", "bf16", "fp16"]
Split = Literal["train", "val", "test"]

CACHE_GB = 4.0  # most that parts of remote shards may take on disk


def _cache_now(value: Any) -> Any:
    return "disk" if value == "tier" else value  # the former name


Cache = Annotated[Literal["auto", "ram", "disk", "off"], BeforeValidator(_cache_now)]
