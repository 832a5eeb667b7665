"""A folder that one run at a time writes into."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

LOCK = ".lock"


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Makes the folder and keeps other runs of this machine from writing into it meanwhile; a killed one keeps none.

    ValueError where another run writes there, or a file is in the way. A file system without locks keeps nobody away.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        at = next(path for path in (out, *out.parents) if path.is_file())
        raise ValueError(f"expected a folder to write into, but {at} is a file: choose another than {out}") from None
    path = out / LOCK
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The file that was locked may be one that another run has just removed.
            free = path.exists() and os.path.samestat(path.stat(), os.fstat(lock.fileno()))
        except BlockingIOError:
            free = False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            free = True
        if not free:
            raise ValueError(f"another run is writing into {out}: wait for it, or choose another folder")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
