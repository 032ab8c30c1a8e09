"""Reading the files of somebody else's data set: parquet, JSON lines and columns of numbers, every fault named by file and field."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import reason


def data_files(folder: Path, pattern: str) -> list[Path]:
    """The files below a folder, in the order of the numbers in their names.  Raises: ValueError when there are none."""
    files = [file for file in folder.glob(pattern) if file.is_file()]
    if not files:
        raise ValueError(f"{folder} has no files {pattern}: it is no complete LeRobotDataset.")
    return sorted(files, key=lambda file: [int(n) for n in re.findall(r"\d+", file.relative_to(folder).as_posix())])


def read_table(path: Path, columns: Sequence[str]) -> pa.Table:
    """Some columns of a parquet file.  Raises: ValueError for a broken file or a missing column."""
    try:
        with pq.ParquetFile(path) as file:
            missing = [column for column in columns if column not in file.schema_arrow.names]
            if missing:
                raise ValueError(f"it has no column {missing[0]!r}, only {', '.join(file.schema_arrow.names)}")
            return file.read(columns=list(columns)).replace_schema_metadata()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"cannot read {path}: {reason(error)}.") from error


def column_names(path: Path) -> list[str]:
    """The columns of a parquet file.  Raises: ValueError for a broken file."""
    try:
        return pq.read_schema(path).names
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"cannot read {path}: {reason(error)}.") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A file of one JSON object a line.  Raises: ValueError when it is missing or broken, naming the line."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {reason(error)}.") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"line {number} of {path} is no JSON: {error}.") from error
        if not isinstance(content, dict):
            raise ValueError(f"line {number} of {path} must hold a JSON object, got {type(content).__name__}.")
        found.append(content)
    return found


def field(content: dict[str, Any], key: str, kind: type, place: str) -> Any:
    """An entry of some type (float: any finite number).  Raises: ValueError naming the place and the entry."""
    if key not in content:
        raise ValueError(f"{place} has no {key!r}.")
    value = content[key]
    if kind is float:
        right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    else:
        right = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    if not right:
        raise ValueError(f"{key!r} in {place} must be of type {kind.__name__}, got {value!r}.")
    return value


def numbers(column: pa.ChunkedArray, shape: Sequence[int], name: str, place: str) -> np.ndarray:
    """A column of numbers or of (nested) lists of numbers as an array (rows, *shape); missing numbers are NaN.

    Raises: ValueError for what are no numbers, and rows of another size than `shape`.
    """
    parts = [_flat(chunk, name, place) for chunk in column.chunks]
    flat = np.concatenate([values for values, _ in parts]) if parts else np.empty(0)
    sizes = {size for _, found in parts for size in found}
    width = math.prod(shape)
    if sizes - {width} or len(flat) != len(column) * width:
        found = ", ".join(str(size) for size in sorted(sizes - {width})) or "missing ones"
        raise ValueError(
            f"{name!r} has the shape {list(shape)} in meta/info.json, but rows of {place} hold {found} numbers."
        )
    return flat.reshape(len(column), *(shape if tuple(shape) != (1,) else ()))


def _flat(array: pa.Array, name: str, place: str) -> tuple[np.ndarray, list[int]]:
    """All numbers of an array, and how many a row has (the different counts)."""
    rows, sizes = len(array), {1}
    while True:
        array = array.storage if isinstance(array, pa.ExtensionArray) else array
        kind = array.type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            break
        lengths = {0 if size is None else size for size in pc.unique(pc.list_value_length(array)).to_pylist()}
        sizes = {a * b for a in sizes for b in lengths}
        array = array.flatten()
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise ValueError(f"the column {name!r} of {place} must hold numbers, got {kind}.")
    return array.to_numpy(zero_copy_only=False), sorted(sizes) if rows else []
