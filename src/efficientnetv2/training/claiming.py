"""A run's folder while the run begins, and while it is under way: nobody else begins one there, or goes on with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from efficientnetv2.base.errors import InputError
from efficientnetv2.base.files import folder_for
from efficientnetv2.base.locks import locked
from efficientnetv2.training.folder import LOCK, RUNNING
from efficientnetv2.training.runs import new_folder, refuse_occupied

# The processes that read pictures for a run outlive it by up to five seconds where it is killed (PyTorch's
# MP_STATUS_CHECK_INTERVAL), and were forked with its lock.
_PATIENCE_S = 10.0


@contextmanager
def claimed(
    path: Path, *, name: str | None = None, refuse: Callable[[Path], None] = refuse_occupied
) -> Iterator[Path]:
    """A folder in which, within, no other run begins; ended by an error or Ctrl-C, it goes if it is empty.

    Between the choice of a folder and the first file in it every picture is looked at, and meanwhile another run may
    have chosen the same. The claim is a lock of the operating system, which ends with the process that holds it: a
    beginning that was killed bars nobody.

    Args:
        path: of the folder, which may be there.
        name: what the folder is called after, where nobody has named it: then the next free one under the same folder
            is taken instead of one that another run has by now. None refuses that one.
        refuse: raises an InputError for a folder in which nothing may be begun.

    Yields:
        The folder, made.

    Raises:
        InputError: another run begins there, or ``refuse`` raises it; or the folder can't be made.
    """
    with ExitStack() as kept:
        while True:
            try:
                kept.enter_context(_alone_in(path, refuse))
                break
            except InputError:
                if name is None or not path.exists():  # it can't be made, nor could another
                    raise
                path = new_folder(path.parent, name)
        yield path


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Within, nobody else goes on with what was begun in a folder: two would write the same checkpoints.

    Like a claim it is a lock of the operating system: a run that was killed bars nobody. Of many processes of one run
    the first holds it for all.

    Args:
        path: of the folder, which is there.

    Raises:
        InputError: another process is at work there; or the folder can't be written into.
    """
    file = path / RUNNING
    taken = (
        "another process is at work in this folder at this moment. Wait for its end, or stop it: 'lsof "
        f"{file}' names it, on the machine that it runs on."
    )
    fix = "Let the folder be written into, or go on with a copy of it elsewhere."
    with locked(file, str(path), taken=taken, fix=fix, patience_s=_PATIENCE_S):
        yield


def at_work(path: Path) -> bool:
    """Whether a process is at work in a folder at this moment, ``held`` by it.

    A file that a killed run has left says nothing; its lock has ended with the process.

    Args:
        path: of the folder.

    Returns:
        False too where it can't be known: of a folder that may not be written into, or of a process on another machine
        whose locks the file system does not pass on.
    """
    file = path / RUNNING
    if not file.is_file():
        return False
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False


@contextmanager
def _alone_in(path: Path, refuse: Callable[[Path], None]) -> Iterator[None]:
    fix = "Give another folder."
    taken = f"another run is beginning there at this moment. {fix}"
    with folder_for(path, "--out"), locked(path / LOCK, f"--out {path}", taken=taken, fix=fix):
        refuse(path)
        yield
