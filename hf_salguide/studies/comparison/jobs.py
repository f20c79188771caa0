"""Several runs at a time, each in a process of its own, so that one that dies takes nothing with it."""

import contextlib
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch


def run_jobs(
    work: Callable[[Any], Any], tasks: Sequence[Any], jobs: int, done: Callable[[Any, Any, str], None]
) -> None:
    """
    Runs `work(task)` for every task, `jobs` at a time.

    The processes serve one task after the other; one that dies (killed for memory, say) is replaced, and its task
    alone is lost. They end with the process that calls, however that ends. Where there are several GPUs, each process
    sees one of them, in turn.

    Args:
        work (`Callable`): a function at the top of a module; what it raises counts as a death.
        tasks (sequence): what it is called with, picklable.
        jobs (`int`): processes at a time.
        done (`Callable`): called here with the task, what `work` gave back (`None` for a death), and how the process
            died (empty where it did not), in the order in which tasks end.
    """
    waiting = deque(tasks)
    workers = [_Worker(work, number, jobs) for number in range(min(jobs, len(waiting)))]
    try:
        for worker in workers:
            worker.give(waiting.popleft())
        while busy := [worker for worker in workers if worker.busy]:
            ready = wait([worker.connection for worker in busy])
            for worker in [worker for worker in busy if worker.connection in ready]:
                task, result, death = worker.collect()
                done(task, result, death)
                if waiting:
                    worker.give(waiting.popleft())
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """One process, the pipe to it, and the task that it works on."""

    def __init__(self, work: Callable[[Any], Any], number: int, jobs: int):
        self._work, self._number, self._jobs = work, number, jobs
        self._task: Any = None
        self.busy = False
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        with _environment(self._number, self._jobs):
            self.process: BaseProcess = context.Process(target=_serve, args=(theirs, self._work), daemon=True)
            self.process.start()
        theirs.close()  # so that the pipe ends when the process does

    def give(self, task: Any) -> None:
        if not self.process.is_alive():
            self._start()
        self._task, self.busy = task, True
        try:
            self.connection.send(task)
        except BrokenPipeError:  # it died between two tasks
            self._start()
            self.connection.send(task)

    def collect(self) -> tuple[Any, Any, str]:
        """The task, its result, and how the process died, if it did."""
        self.busy = False
        try:
            return self._task, self.connection.recv(), ""
        except (EOFError, OSError):  # it may have died before it read the task
            self.process.join()
            code = self.process.exitcode or 0
            self.connection.close()
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"
            return self._task, None, f"the process of the run {how}"

    def stop(self) -> None:
        if self.busy:
            self.process.terminate()
        else:
            with contextlib.suppress(BrokenPipeError):
                self.connection.send(None)
        self.process.join()


@contextmanager
def _environment(number: int, jobs: int) -> Iterator[None]:
    """What a process that starts now inherits: its share of the cores, and one GPU."""
    wanted = {}
    if jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
        wanted["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    if torch.cuda.device_count() > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
        wanted["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _serve(connection: Connection, work: Callable[[Any], Any]) -> None:
    """Works on tasks until the pipe says `None`."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()
    while (task := connection.recv()) is not None:
        connection.send(work(task))


def _die_with(sentinel: int) -> None:
    """A run that nobody waits for would write into the folder of one that is run again."""
    wait([sentinel])
    os._exit(1)
