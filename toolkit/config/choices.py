"""Allowed values of settings that several packages share. Free of torch."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

NormMode = Literal["full", "statistics", "off"]
NORM_MODES: tuple[str, ...] = get_args(NormMode)
ConsistencyForm = Literal["kl", "mse", "js"]
CacheKind = Literal["ram", "disk", "off"]
Format = Literal["safetensors", "onnx", "pt2"]  # export formats
Precision = Literal["float32", "bf16", "fp16"]
Split = Literal["train", "val", "test"]

CACHE_GB = 4.0  # default of --cache-gb
FORMER_CACHES = {"tier": "disk"}  # names of earlier versions -> current names


def _cache_now(value: Any) -> Any:
    return FORMER_CACHES.get(value, value) if isinstance(value, str) else value


Cache = Annotated[Literal["auto", "ram", "disk", "off"], BeforeValidator(_cache_now)]
