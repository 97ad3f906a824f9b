"""Allowed values of settings that several packages share. Free of torch."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

from toolkit.system.errors import InputError

NormMode = Literal["full", "statistics", "off"]
NORM_MODES: tuple[str, ...] = get_args(NormMode)
ConsistencyForm = Literal["kl", "mse", "js", "standardized", "dkd", "alpha"]
CONSISTENCY_FORMS: tuple[str, ...] = get_args(ConsistencyForm)
ConsistencyTeacher = Literal["larger", "mean"]
CONSISTENCY_TEACHERS: tuple[str, ...] = get_args(ConsistencyTeacher)
BatchGrowth = Literal["off", "sqrt", "linear"]
BATCH_GROWTHS: tuple[str, ...] = get_args(BatchGrowth)
ClassLoss = Literal["ce", "bce", "asl", "poly"]
MultiLabelLoss = Literal["bce", "asl"]
ClassWeights = Literal["none", "inverse", "effective"]
SamplingKind = Literal["plain", "balanced"]
GrayRange = Literal["16bit", "minmax", "percentile"]
Fit = Literal["crop", "pad", "squash"]
CacheKind = Literal["ram", "disk", "off"]
Format = Literal["safetensors", "onnx", "pt2"]  # export formats
OnnxInput = Literal["float32", "uint8"]
Precision = Literal["float32", "bf16", "fp16"]
Split = Literal["train", "val", "test"]

CACHE_GB = 4.0  # default of --cache-gb
TOLERANCE = 1e-4  # default of --tolerance of exports
FORMER_CACHES = {"tier": "disk"}  # names of earlier versions -> current names


def _cache_now(value: Any) -> Any:
    return FORMER_CACHES.get(value, value) if isinstance(value, str) else value


Cache = Annotated[Literal["auto", "ram", "disk", "off"], BeforeValidator(_cache_now)]


def check_ascending(flag: str, sizes: Sequence[int] | None) -> None:
    """Raise InputError unless the sizes are positive and strictly ascending, or None."""
    if sizes is None or (sizes and sizes[0] > 0 and list(sizes) == sorted({*sizes})):
        return
    given, mended = (",".join(map(str, values)) for values in (sizes, sorted({size for size in sizes if size > 0})))
    raise InputError(
        f"{flag} {given}: sizes must be positive and ascending, each once" + (f"; try {mended}" if mended else "")
    )
