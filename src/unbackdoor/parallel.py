"""Independent pieces of work, each in a process of its own: small models leave a second core idle."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from unbackdoor.errors import UserError
from unbackdoor.interrupts import interrupt

T = TypeVar("T")


def in_processes(
    work: Callable[..., T],
    calls: Sequence[Sequence[Any]],
    jobs: int,
    *,
    needs: Sequence[Collection[int]] = (),
    done: Callable[[int, T], None] = lambda number, result: None,
) -> list[T]:
    """`work(*call)` for every call, in their order, at most `jobs` at a time.

    One job runs in this process. More run in fresh ones (spawned, so `work` and what it is given must pickle), each
    with its share of the cores; of what can begin, the first of the list does. The first error stops the others,
    between two of their steps, and is raised here. Ctrl-C reaches each of them once through this process; a second
    Ctrl-C kills them.

    Args:
        work: what is called.
        calls: its arguments.
        jobs: how many run at once.
        needs: for each call the numbers of those that must end before it begins, all of them smaller than its own.
        done: told in this process of every call that has ended, and of its result, in the order of their ends.
    """
    if jobs == 1 or len(calls) == 1:
        results = []
        for number, call in enumerate(calls):
            results.append(work(*call))
            done(number, results[-1])
        return results
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads must not take the other process's core
    pool = ProcessPoolExecutor(
        min(jobs, len(calls)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(os.getpid(), max(1, (os.cpu_count() or 1) // jobs)),
    )
    waiting = {number: set(needs[number] if needs else ()) for number in range(len(calls))}
    numbers: dict[Future[T], int] = {}
    ended: dict[int, T] = {}
    try:
        while len(ended) < len(calls):
            free = jobs - len(numbers) + len(ended)
            for number in [number for number, lacks in waiting.items() if not lacks][:free]:
                del waiting[number]
                numbers[pool.submit(_interruptible, work, calls[number])] = number
            running = [future for future, number in numbers.items() if number not in ended]
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number = numbers[future]
                ended[number] = future.result()  # raises what went wrong, while others may still run
                for lacks in waiting.values():
                    lacks.discard(number)
                done(number, ended[number])
        return [ended[number] for number in range(len(calls))]
    except BrokenProcessPool:
        raise UserError(
            "a process was killed, perhaps for lack of memory: go on with --resume, and --jobs 1 for one at a time"
        ) from None
    finally:
        _stop(pool, list(numbers))


def _stop(pool: ProcessPoolExecutor, futures: Sequence[Future[Any]]) -> None:
    """Interrupt what still runs, and wait for it to save its state."""
    try:
        if not all(future.done() for future in futures):
            for child in multiprocessing.active_children():
                if child.pid is not None:
                    os.kill(child.pid, signal.SIGINT)
        pool.shutdown(cancel_futures=True)
    except KeyboardInterrupt:
        for child in multiprocessing.active_children():
            child.kill()
        raise


def _begin(parent: int, threads: int) -> None:
    """In a fresh process: its share of the cores, Ctrl-C through the parent alone, and an end when that is gone."""
    import torch

    torch.set_num_threads(threads)
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a request to end (SIGTERM) ends a process that has no work at once
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the parent passes it on

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _interruptible(work: Callable[..., T], call: Sequence[Any]) -> T:
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        return work(*call)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
