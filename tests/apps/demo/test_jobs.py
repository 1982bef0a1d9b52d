"""Jobs of the page: one at a time per model, in order, in a bounded queue, and actually stopped."""

import threading
from itertools import count

import pytest
from bifrons.apps.demo.jobs import Job, JobQueue, Jobs, Stopped, Waiting
from bifrons.blocks.errors import BifronsError


def endless(job):
    for step in count():
        job.report(step)


def test_updates_and_result_of_a_job():
    def work(job):
        job.report("half")
        return "whole"

    job = Job(JobQueue(), work)
    assert list(job.updates()) == ["half"]
    assert job.result == "whole"


def test_exceptions_in_a_job_reach_the_reader_of_its_updates():
    def work(job):
        raise BifronsError("no such thing")

    with pytest.raises(BifronsError, match="no such thing"):
        list(Job(JobQueue(), work).updates())


def test_stop_ends_a_job():
    job = Job(JobQueue(), endless)
    updates = job.updates()
    assert next(updates) >= 0
    job.stop()
    with pytest.raises(Stopped):
        list(updates)
    assert not job.running


def test_closing_the_updates_ends_a_job():
    job = Job(JobQueue(), endless)
    updates = job.updates()
    next(updates)
    updates.close()
    job._thread.join(30)
    assert not job.running


def test_jobs_of_one_queue_wait_for_each_other():
    queue = JobQueue()
    first, second = Job(queue, endless), Job(queue, lambda job: "done")
    running = first.updates()
    next(running)
    waiting = second.updates()
    assert next(waiting) == Waiting(1)
    first.stop()
    assert set(waiting) <= {Waiting(1)}
    assert second.result == "done"
    with pytest.raises(Stopped):
        list(running)


def test_a_waiting_job_can_be_stopped():
    queue = JobQueue()
    first, second = Job(queue, endless), Job(queue, lambda job: "done")
    running = first.updates()
    next(running)
    waiting = second.updates()
    next(waiting)
    second.stop()
    with pytest.raises(Stopped):
        list(waiting)
    assert second.result is None
    running.close()


def test_a_full_queue_refuses_jobs():
    queue = JobQueue(room=0)
    started, finish = threading.Event(), threading.Event()

    def work(job):
        started.set()
        finish.wait(30)

    first = Job(queue, work)
    thread = threading.Thread(target=lambda: list(first.updates()))
    thread.start()
    assert started.wait(30)
    with pytest.raises(BifronsError, match="try again"):
        list(Job(queue, work).updates())
    finish.set()
    thread.join(30)
    list(Job(queue, work).updates())  # there is room again


def test_each_session_runs_one_job_per_tab():
    jobs, queue = Jobs(), JobQueue()
    first, second, other = (Job(queue, endless) for _ in range(3))
    jobs.add("a", "create", first)
    jobs.add("b", "create", other)
    jobs.add("a", "create", second)
    with pytest.raises(Stopped):
        list(first.updates())
    jobs.remove("a", "create", first)  # no effect: the second job has replaced it
    jobs.leave("a")
    with pytest.raises(Stopped):
        list(second.updates())
    other.check()
    assert len(jobs) == 1
