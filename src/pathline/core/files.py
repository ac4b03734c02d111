"""Files appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from pathline.core.errors import UsageError


def write_atomically(path: str | Path, content: bytes | str | Callable[[Path], None]) -> Path:
    """Write a file under a temporary name beside `path`, then rename it into place.

    Args:
        path: the file to write; missing parent folders are made.
        content: bytes, text (UTF-8), or a function that writes to the temporary path it is given.

    Returns:
        `path`, as a `Path`.

    Raises:
        UsageError: the place cannot be written to (read-only, a folder, no space left).
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        _fill(temporary, content)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            f"cannot write {path}: {reason}; choose a place that can be written."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return path


def _fill(path: Path, content: bytes | str | Callable[[Path], None]) -> None:
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
