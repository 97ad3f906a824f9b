"""Allowed values of settings that several packages share. Free of torch."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

NormMode = Literal["full", "statistics", "off"]
NORM_MODES: tuple[str, ...] = get_args(NormMode)
ConsistencyForm = Literal["kl", "mse", "js"]
ClassLoss = Literal["ce", "bce"]
ClassWeights = Literal["none", "inverse"]
CacheKind = Literal["ram", "disk", "off"]
Format = Literal["safetensors", "onnx", "pt2"]  # export formats
Precision = Literal["float32", "bf16", "fp16"]
Split = Literal["train", "val", "test"]

CACHE_GB = 4.0  # disk limit for parts of remote shards


def _cache_now(value: Any) -> Any:
    return "disk" if value == "tier" else value  # the former name of disk


Cache = Annotated[Literal["auto", "ram", "disk", "off"], BeforeValidator(_cache_now)]
