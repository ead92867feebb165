"""The program that unpacks a Parquet file, started by `data.files` and fed over pipes.

A page of a Parquet file can say one value a million times in a few bytes, and the library makes room for all of them at
once: so it happens here, where memory is limited. This file imports nothing of the package: it is started by its path.

The file comes on standard input, its rows go out as an Arrow stream. Argument: how many bytes they may have. It exits
with `TOO_LARGE` where they have more, and with `NO_PARQUET` and a line on standard error where it is none.
"""

from __future__ import annotations

import io
import sys
from typing import Any

TOO_LARGE, NO_PARQUET = 3, 4
ROWS, BYTES_A_ROW = 256, 256
"""Rows that are unpacked at once, and what a row takes at the least, once it is read."""
BESIDE = 2 * 2**30
"""Bytes that the library, and what it unpacks from, may take beside the rows."""


def main(most: int) -> int:
    """Unpack, and return the exit code."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # others reserve more than they use
    pyarrow.set_cpu_count(1)
    raw = sys.stdin.buffer.read()
    _limit_memory(BESIDE + 2 * most + 2 * len(raw))
    try:
        file, size = pyarrow.parquet.ParquetFile(io.BytesIO(raw)), 0
        about = file.metadata
        stated = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        if max(about.num_rows * BYTES_A_ROW, stated) > most:
            return TOO_LARGE
        plain = pyarrow.schema([_spelled_out(field) for field in file.schema_arrow])
        with pyarrow.ipc.new_stream(sys.stdout.buffer, plain) as stream:
            for batch in file.iter_batches(batch_size=ROWS, use_threads=False):
                batch = pyarrow.record_batch(
                    [column.cast(field.type) for column, field in zip(batch.columns, plain, strict=True)], schema=plain
                )
                size += max(batch.nbytes, batch.num_rows * BYTES_A_ROW)
                if size > most:
                    return TOO_LARGE
                stream.write_batch(batch)
    except MemoryError:
        return TOO_LARGE
    except Exception as error:  # of what a stranger wrote
        sys.stderr.write((str(error).splitlines() or [type(error).__name__])[0][:1000])
        return NO_PARQUET
    return 0


def _spelled_out(field: Any) -> Any:
    """The field without a dictionary, by which a text would be counted once, however often it stands there."""
    import pyarrow

    kind = field.type
    if pyarrow.types.is_dictionary(kind):
        return field.with_type(kind.value_type)
    if "dictionary" in str(kind):
        raise ValueError(f"the column {field.name[:60]!r} has a dictionary within lists or objects")
    return field


def _limit_memory(more: int) -> None:
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - nothing but this is needed of pathlib
            limit = int(file.read().split()[0]) * resource.getpagesize() + more
        highest = resource.getrlimit(resource.RLIMIT_AS)[1]
        soft = limit if highest == resource.RLIM_INFINITY else min(limit, highest)
        resource.setrlimit(resource.RLIMIT_AS, (soft, highest))
    except (ImportError, OSError, ValueError):  # no such limit on this system
        pass


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
