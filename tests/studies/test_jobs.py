"""Several processes that work on tasks, and what is left of one that dies."""

import os
import signal
import subprocess
import sys
import time

import pytest

from hf_salguide.studies.comparison import jobs
from hf_salguide.studies.comparison.jobs import run_jobs

KILLED = "__import__('os').kill(__import__('os').getpid(), 9)"
LEFT = "__import__('os')._exit(3)"


def outcomes(tasks, jobs):
    found = {}
    run_jobs(eval, tasks, jobs, lambda task, result, death: found.update({task: (result, death)}))
    return found


@pytest.mark.parametrize("jobs", [1, 3])
def test_every_task_is_worked_on(jobs):
    assert outcomes(["1 + 1", "[2] * 2", "None"], jobs) == {
        "1 + 1": (2, ""),
        "[2] * 2": ([2, 2], ""),
        "None": (None, ""),
    }


def test_a_process_that_dies_takes_its_own_task_alone():
    found = outcomes([KILLED, "1 + 1", LEFT, "2 + 2"], 1)
    assert found["1 + 1"] == (2, "")
    assert found["2 + 2"] == (4, "")
    assert found[KILLED] == (None, "the process of the run was killed by signal 9")
    assert found[LEFT] == (None, "the process of the run ended with exit status 3")


def test_a_process_that_dies_between_two_tasks_is_replaced(monkeypatch):
    """It is noticed when the next task is given, or when nothing comes of it."""
    give = jobs._Worker.give
    killed = []

    def killing(self, task):
        if task == "2 + 2" and not killed:
            killed.append(self.process.kill())
            self.process.join()
            self.process.is_alive = lambda: True  # nobody has noticed yet
        give(self, task)

    monkeypatch.setattr(jobs._Worker, "give", killing)
    assert outcomes(["1 + 1", "2 + 2", "3 + 3"], 1)["3 + 3"] == (6, "")


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    told = "__import__('os').environ.get('OMP_NUM_THREADS')"
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert outcomes([told], 2)[told][0] == "4"
    assert "OMP_NUM_THREADS" not in os.environ


def test_no_tasks_are_no_work():
    assert outcomes([], 2) == {}


def test_a_process_does_not_outlive_the_one_that_waits_for_it(tmp_path):
    file = tmp_path / "pid"
    task = f"open({str(file)!r}, 'w').write(str(__import__('os').getpid())) and __import__('time').sleep(120)"
    call = f"if __name__ == '__main__': run_jobs(eval, [{task!r}], 1, print)"
    code = f"from hf_salguide.studies.comparison.jobs import run_jobs\n{call}\n"
    script = tmp_path / "script.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, str(script)])
    try:
        until(lambda: file.exists() and file.read_text())
        child = int(file.read_text())
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        until(lambda: not running(child))
    finally:
        parent.kill()


def running(pid):
    try:
        return open(f"/proc/{pid}/stat").read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def until(holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
