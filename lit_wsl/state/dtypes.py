"""The dtype names of the safetensors format and of configuration files."""

import torch

from lit_wsl.errors import ConfigError, did_you_mean

SAFETENSORS_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SAFETENSORS_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}

FLOAT_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def float_dtype(name: str) -> torch.dtype:
    """The floating-point dtype of that name.

    Raises:
        ConfigError: If no floating-point dtype has that name.
    """
    try:
        return FLOAT_DTYPES[name]
    except KeyError:
        raise ConfigError(f"Unknown dtype {name!r}. {did_you_mean(name, FLOAT_DTYPES)}") from None


def is_mergeable(dtype: torch.dtype) -> bool:
    """Whether arithmetic on entries of that dtype means something: floating point of 16 bits or more."""
    return dtype.is_floating_point and dtype.itemsize >= 2
