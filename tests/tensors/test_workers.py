"""Workers in processes and in threads: what they share, what they keep to themselves, and how they end."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
import torch

from lit_wsl.tensors import workers
from lit_wsl.tensors.workers import forked, free_cores, parallel_parameters, single_threaded

ROOT = Path(__file__).parents[2]


@pytest.fixture
def two_threads():
    """Torch has two threads before and after."""
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


def own():
    """Process, thread, torch's threads, and what becomes of Ctrl-C."""
    ignored = threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT)
    return os.getpid(), threading.get_ident(), torch.get_num_threads(), ignored


def test_cores_are_those_that_this_process_may_use():
    assert free_cores() == len(os.sched_getaffinity(0))
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    try:
        assert free_cores() == 1
    finally:
        os.sched_setaffinity(0, mine)


@pytest.mark.parametrize(("known", "wanted"), [(5, 5), (None, 1)])
def test_cores_are_those_of_the_machine_where_a_process_is_not_told_its_own(monkeypatch, known, wanted):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: known)
    assert free_cores() == wanted


@pytest.mark.usefixtures("two_threads")
def test_torch_keeps_to_one_core_for_a_while_and_takes_all_again_after_an_error():
    with pytest.raises(KeyError), single_threaded():
        assert torch.get_num_threads() == 1
        raise KeyError


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("given", [0, 1, 3])
def test_a_pool_has_as_many_threads_as_asked_for_or_cores(given):
    wanted = given or free_cores()
    barrier = threading.Barrier(wanted, timeout=20)
    with parallel_parameters(given) as pool:
        assert pool._max_workers == wanted
        jobs = [pool.submit(lambda: (barrier.wait(), own())[1]) for _ in range(wanted)]
        found = [job.result() for job in jobs]
    assert {(one[0], one[2]) for one in found} == {(os.getpid(), 1)}
    assert len({one[1] for one in found}) == wanted


def test_a_pool_that_is_not_told_how_many_has_a_thread_per_core(monkeypatch):
    monkeypatch.setattr(workers, "free_cores", lambda: 3)
    with parallel_parameters() as pool:
        assert pool._max_workers == 3


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("settings", [{"count": 1}, {"count": 3, "in_threads": True}], ids=str)
def test_threads_where_one_will_do_or_they_are_wished_for(settings):
    with forked(own, **settings) as pool:
        assert pool.submit().result()[:3:2] == (os.getpid(), 1)


def test_threads_where_processes_are_not_forked(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with forked(own, 2) as pool:
        assert pool.submit().result()[0] == os.getpid()


@pytest.mark.usefixtures("two_threads")
def test_forked_workers_keep_to_one_core_and_leave_ctrl_c_to_their_parent():
    with forked(own, 2) as pool:
        process, _, threads, interrupt = pool.submit().result()
    assert process != os.getpid()
    assert (threads, interrupt) == (1, signal.SIG_IGN)


def test_a_forked_worker_keeps_its_changes_and_returns_its_result():
    state = {"w": torch.zeros(3), "seen": 0}

    def work(add, *, times):
        state["w"] += add
        state["seen"] += 1
        return {"sum": state["w"] * times, "name": "w"}

    with forked(work, 2) as pool:
        found = [pool.submit(1.0, times=n).result() for n in (1, 2)]
    assert all(torch.equal(one["sum"] / times, one["sum"][:1].expand(3) / times) for times, one in enumerate(found, 1))
    assert found[0]["sum"].tolist() == [1.0] * 3
    assert (state["seen"], state["w"].tolist()) == (0, [0.0] * 3)


def test_a_task_inside_a_task_is_its_own():
    with forked(lambda: "outer", 2) as outer:
        with forked(lambda: "inner", 2) as inner:
            assert inner.submit().result() == "inner"
        assert outer.submit().result() == "outer"
    with forked(lambda: "next", 2) as pool:
        assert pool.submit().result() == "next"
    assert workers._TASKS == []


def test_an_error_of_a_worker_arrives_and_the_rest_is_not_begun(tmp_path):
    def work(number):
        (tmp_path / str(number)).touch()
        if number == 0:
            raise KeyError("broken")
        time.sleep(0.2)

    with pytest.raises(KeyError, match="broken"), forked(work, 2) as pool:
        jobs = [pool.submit(number) for number in range(50)]
        jobs[0].result()
    assert len(list(tmp_path.iterdir())) < 20
    assert jobs[-1].cancelled()
    with pytest.raises(CancelledError):
        jobs[-1].result()
    assert workers._TASKS == []


def test_threads_that_are_left_early_begin_no_more():
    done = []
    with pytest.raises(ValueError, match="enough"), parallel_parameters(2) as pool:
        jobs = [pool.submit(lambda: (time.sleep(0.05), done.append(1))) for _ in range(50)]
        raise ValueError("enough")
    assert all(job.done() for job in jobs)
    assert len(done) < 20


def test_forking_beside_threads_is_quiet_and_the_collector_is_given_back():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    before = gc.get_freeze_count()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with forked(gc.get_freeze_count, 2) as pool:
            assert pool.submit().result() > before
    stop.set()
    thread.join()
    assert gc.get_freeze_count() == 0


def test_a_tensor_arrives_as_bytes_and_holds_no_file_open():
    with forked(lambda: torch.arange(1000.0), 2) as pool:
        found = [pool.submit().result() for _ in range(20)]
    assert not any(tensor.is_shared() for tensor in found)
    assert torch.equal(found[0], torch.arange(1000.0))


def test_a_worker_dies_with_its_parent():
    command = [sys.executable, "-m", "tests.tensors.workers_processes"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists() or " Z " in Path(f"/proc/{worker}/stat").read_text():
            return
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    raise AssertionError("the worker lives on")


def test_a_worker_whose_parent_is_gone_already_ends_at_once():
    child = os.fork()
    if not child:
        workers._start(os.getppid() + 1)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
