"""A background thread that stays a few items ahead of the loop that uses them."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Generator, Iterator
from queue import Empty, Queue
from typing import TypeVar

T = TypeVar("T")


class _End:
    """After the last item, with the exception that ended the source, if one did."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def _produce(source: Iterator[T], queue: Queue[T | _End], stop: threading.Event) -> None:
    end = _End()
    try:
        for item in source:
            queue.put(item)
            del item  # or this thread would keep it while it makes the next one
            if stop.is_set():
                return
    except BaseException as error:  # handed over, and raised where the items are used
        end = _End(error)
    queue.put(end)


def prefetched(source: Iterator[T], depth: int) -> Generator[T, None, None]:
    """The items of ``source``, made by a thread that is at most ``depth`` + 1 items ahead.

    The thread starts with the first ``next`` and ends with the iteration: when the source is exhausted, when it
    raises (the exception is raised here, with its traceback), or when the iteration is closed or garbage-collected.

    Args:
        source: used by that thread only.
        depth: at least 1; 0 makes the items in the caller's thread.
    """
    if depth == 0:
        yield from source
        return
    queue: Queue[T | _End] = Queue(depth)
    stop = threading.Event()
    thread = threading.Thread(target=_produce, args=(source, queue, stop), name="fastseq-prefetch", daemon=True)

    def finish() -> None:
        # Once stopped, the thread puts at most one more item (it may wait to do so right now) and its end, if there is
        # room: an emptied queue of any depth has room for the first, and is emptied until the thread has gone.
        stop.set()
        while thread.is_alive():
            try:
                while True:
                    queue.get_nowait()
            except Empty:
                thread.join(0.01)

    atexit.register(finish)  # a thread cannot be waited for once the interpreter is being taken down
    thread.start()
    try:
        while True:
            item = queue.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        finish()
        atexit.unregister(finish)
