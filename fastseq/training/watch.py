"""What ends a training of several processes in all of them, with a line that says why: one of them died, froze, failed
or never came.

Collectives alone do not: gloo waits half an hour for a process that is frozen or whose machine is gone, and names none.
So every process gives a sign of life each second in the store where they have met, and reads those of the others. Work
may take as long as it likes, since threads of their own do this.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch.distributed as dist

from fastseq.errors import ConfigError, TrainingError

INTERVAL = 1.0  # seconds from one sign of life to the next
SUSPECT = 3  # intervals without one, after which a lost connection is a process's fault
GRACE = 5  # intervals that a process has to end by an error of its own, once there is no going on


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ConfigError(f"{name} is {text!r}, expected seconds above 0")
    return value


def meet(rank: int, world_size: int) -> tuple[dist.Store, Watch]:
    """Waits for all processes at MASTER_ADDR and MASTER_PORT, FASTSEQ_JOIN_SECONDS (60) at most.

    Returns:
        The store there, for ``init_process_group``, and the watch over all processes, which has begun.

    Raises:
        TrainingError: if not all have come, naming those that have not.
        ConfigError: if they were started with different world sizes, or two with the same rank.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    limit, silence = _seconds("FASTSEQ_JOIN_SECONDS", 60.0), _seconds("FASTSEQ_SILENT_SECONDS", 45.0)
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun holds the store
    deadline, me = time.monotonic() + limit, f"rank {rank} on {socket.gethostname()}"
    while by_agent or rank > 0:
        try:
            socket.create_connection((address, port), max(0.1, deadline - time.monotonic())).close()
            break
        except OSError as error:
            if time.monotonic() >= deadline:
                raise TrainingError(
                    f"{me}: rank 0 has not come to {address}:{port} in {limit:g} s ({error}); start it there, or see "
                    "that MASTER_ADDR and MASTER_PORT are the same for all and reachable"
                ) from None
            time.sleep(0.1)

    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store outlives what it restarts

    def connect(serve: bool, name: str) -> dist.Store:
        store = dist.TCPStore(
            address, port, is_master=serve, timeout=timedelta(seconds=limit), wait_for_workers=False, multi_tenant=True
        )
        return dist.PrefixStore(f"{name}/{attempt}", store)

    try:
        store = connect(rank == 0 and not by_agent, "group")
        watched = connect(False, "fastseq")  # a connection for one thread
    except dist.DistError as error:
        raise TrainingError(f"{me} cannot meet the others at {address}:{port}: {first_line(error)}") from error
    try:
        hosts = _all_came(watched, rank, world_size, deadline, limit)
    except dist.DistError as error:
        raise TrainingError(f"{me}: the store at {address}:{port} is gone while the others were waited for") from error
    store.set_timeout(timedelta(minutes=30))  # dist.default_pg_timeout: of what waits there from now on
    return store, Watch(watched, rank, hosts, silence, f"{address}:{port}")


def _all_came(store: dist.Store, rank: int, world_size: int, deadline: float, limit: float) -> list[str]:
    """The hosts of all ranks, once all have come."""
    if store.add(f"came/{rank}", 1) > 1:
        raise ConfigError(f"two processes have RANK {rank}: give each its own, or start with torchrun")
    store.set(_beat(rank), "0")
    store.compare_set("failed", "", "")
    store.set(f"host/{rank}", f"{world_size} {socket.gethostname()}")
    keys = [f"host/{each}" for each in range(world_size)]
    while not store.check(keys):
        if time.monotonic() >= deadline:
            missing = [str(each) for each, key in enumerate(keys) if not store.check([key])]
            came = world_size - len(missing)
            why = (
                f"{came} of {world_size} processes came in {limit:g} s, {_ranks(missing)} did not: see what became of "
                "them. FASTSEQ_JOIN_SECONDS is how long to wait"
            )
            store.compare_set("failed", "", why)
            time.sleep(INTERVAL)  # until all have read it: the store may end with this process
            raise TrainingError(why)
        if why := store.get("failed").decode():
            raise TrainingError(why)
        time.sleep(0.05)
    said = [x.decode().split(" ", 1) for x in store.multi_get(keys)]
    if {size for size, _ in said} != {str(world_size)}:
        sizes = ", ".join(f"{size} on {host}" for size, host in said)
        raise ConfigError(f"WORLD_SIZE differs between processes: {sizes}")
    return [host for _, host in said]


class Watch:
    """The signs of life of all processes.

    Args:
        store: where they are, over a connection of its own.
        rank: of this process; hosts: of each.
        silence: seconds without a sign of life after which a process is taken for dead.
        address: of the store, for messages.

    Attributes:
        cause: why training cannot go on, or None.
    """

    def __init__(self, store: dist.Store, rank: int, hosts: list[str], silence: float, address: str) -> None:
        self._store, self._rank, self._hosts, self._address = store, rank, hosts, address
        self._limit = max(1, round(silence / INTERVAL))
        self.cause: str | None = None
        self._beats = ["0"] * len(hosts)  # as last read
        self._silent = [0] * len(hosts)  # intervals since they changed
        self._ended, self._raising, self._grouped = threading.Event(), False, False
        # Two threads: one may be stuck in a store whose machine is gone.
        self._threads = [threading.Thread(target=x, daemon=True) for x in (self._give_signs, self._count_silence)]
        for thread in self._threads:
            thread.start()

    def _give_signs(self) -> None:
        keys = [*map(_beat, range(len(self._hosts))), "failed"]
        number = 0
        while not self._ended.wait(INTERVAL):
            number += 1
            try:
                self._store.set(_beat(self._rank), str(number))
                *beats, failed = (value.decode() for value in self._store.multi_get(keys))
            except RuntimeError:
                if self._beats[0] == _LEFT:  # who may have held the store
                    self._ended.set()
                elif self.cause is None:
                    self.cause = self._store_is("gone")
                return
            self._beats = beats
            if failed and self.cause is None:
                self.cause = failed

    def _count_silence(self) -> None:
        before, waited = self._beats, 0
        # By its own intervals, not by the clock: a process that was frozen must not blame the others.
        while not self._ended.wait(INTERVAL):
            if self._grouped and not dist.is_initialized():  # somebody has destroyed the group
                return self.leave()
            self._grouped = dist.is_initialized()
            beats = self._beats
            self._silent = [n + 1 if a == b else 0 for n, a, b in zip(self._silent, before, beats, strict=True)]
            before = beats
            if self.cause is None:
                self.cause = self._blame(self._limit)
            if self.cause is not None and not self._raising:
                waited += 1
                if waited > GRACE:
                    self._end_process(self.cause)

    def _blame(self, intervals: int) -> str | None:
        """Who has been silent for so long, in words."""
        silent = [r for r, n in enumerate(self._silent) if n >= intervals and self._beats[r] != _LEFT]
        if not silent:
            return None
        if self._silent[self._rank] >= max(2, intervals - 2):  # its own signs do not come back either
            return self._store_is("out of reach")
        named = ", ".join(f"rank {rank} on {self._hosts[rank]}" for rank in silent)
        return f"no sign of life from {named} for {max(self._silent[r] for r in silent) * INTERVAL:g} s: dead or frozen"

    def _store_is(self, what: str) -> str:
        return (
            f"rank {self._rank} on {self._hosts[self._rank]}: the store at {self._address}, where all processes meet, "
            f"is {what}: rank 0 on {self._hosts[0]}, its torchrun or its host has ended, or the network is cut"
        )

    def explained(self, error: BaseException) -> BaseException:
        """What to raise in place of ``error``, which the main thread got: the same, of which the others are told, or,
        where a lost connection is all that it says, one that names who was lost. The watch is over then."""
        if self._ended.is_set():
            return error
        self._raising = True
        text, me = str(error).lower(), f"rank {self._rank} on {self._hosts[self._rank]}"
        lost = isinstance(error, RuntimeError) and any(x in text for x in ("gloo", "nccl", "connection"))
        if isinstance(error, TrainingError) or not (lost or isinstance(error, dist.DistError)):
            self._tell(f"{me} failed: {type(error).__name__}: {first_line(error)}".removesuffix(": "))
            return error
        for _ in range(2 * GRACE):
            gone = [rank for rank, beat in enumerate(self._beats) if beat == _LEFT]
            if self.cause is None and gone:
                self.cause = f"rank {gone[0]} on {self._hosts[gone[0]]} has ended before the others"
            self.cause = self.cause or self._blame(SUSPECT)
            if self.cause is not None:
                break
            time.sleep(INTERVAL)
        cause = self.cause or (
            f"{me} has no connection to the others ({first_line(error)}): where hosts have several networks, "
            "GLOO_SOCKET_IFNAME names the interface"
        )
        self._tell(cause)
        return TrainingError(cause)

    def _tell(self, why: str) -> None:
        """Gives the others a reason to end, if there is none yet."""
        _briefly(lambda: self._store.compare_set("failed", "", why))
        if self._rank == 0:  # the store may end with this process
            time.sleep(2 * INTERVAL)
        self._stop()

    def leave(self) -> None:
        """Ends the watch: this process needs the others no more. Rank 0, who may hold the store, waits a moment for
        them to learn it."""
        if self._ended.is_set():
            return
        self._ended.set()
        _briefly(lambda: self._store.set(_beat(self._rank), _LEFT))
        if self._rank == 0:
            _briefly(self._wait_for_others, SUSPECT * INTERVAL)
        self._stop()

    def _wait_for_others(self) -> None:
        keys = [*map(_beat, range(1, len(self._hosts)))]
        with contextlib.suppress(RuntimeError):
            while any(beat.decode() != _LEFT for beat in self._store.multi_get(keys)):
                time.sleep(0.02)

    def _stop(self) -> None:
        self._ended.set()
        for thread in self._threads:  # none may be in the store when Python is taken down
            if thread is not threading.current_thread():
                thread.join(2 * INTERVAL)

    def at_exit(self) -> None:
        """At the end of the program: it has failed, or is done."""
        error = getattr(sys, "last_value", None)
        if error is not None and not self._ended.is_set():
            self.explained(error)
        self.leave()

    def _end_process(self, cause: str) -> None:
        os.write(2, f"fastseq: {cause}\n".encode())
        _briefly(sys.stdout.flush)
        os._exit(1)


_LEFT = "left"


def _beat(rank: int) -> str:
    return f"beat/{rank}"


def _ranks(numbers: list[str]) -> str:
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def _briefly(function: Callable[[], object], seconds: float = 2.0) -> None:
    """Calls it, and goes on without it if it hangs or fails."""

    def call() -> None:
        with contextlib.suppress(Exception):
            function()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)


def first_line(error: BaseException) -> str:
    """The error's message, as far as one line goes."""
    return (str(error).strip().splitlines() or [""])[0]


_watch: Watch | None = None


def begin(watch: Watch) -> None:
    """From now on ``failing_together`` and ``leave`` are about these processes."""
    global _watch
    _watch = watch
    atexit.register(watch.at_exit)


def leave() -> None:
    """Ends the watch, if there is one."""
    global _watch
    if _watch is not None:
        _watch.leave()
        _watch = None


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """What fails inside fails in all processes: the others end with its message, and a connection that was lost becomes
    a TrainingError that names who was lost."""
    try:
        yield
    except BaseException as error:
        reason = error if _watch is None else _watch.explained(error)
        if reason is error:
            raise
        raise reason from error
