"""Jobs of the page: one at a time for each model, in order, bounded, and really stopped."""

import threading
from itertools import count

import pytest
from bifrons.apps.demo.jobs import Job, JobQueue, Jobs, Stopped, Waiting
from bifrons.blocks.errors import BifronsError


def endless(job):
    for step in count():
        job.report(step)


def test_a_job_gives_its_updates_and_its_result():
    def work(job):
        job.report("half")
        return "whole"

    job = Job(JobQueue(), work)
    assert list(job.updates()) == ["half"]
    assert job.result == "whole"


def test_what_the_work_raises_is_raised_to_the_follower():
    def work(job):
        raise BifronsError("no such thing")

    with pytest.raises(BifronsError, match="no such thing"):
        list(Job(JobQueue(), work).updates())


def test_stop_ends_the_work():
    job = Job(JobQueue(), endless)
    updates = job.updates()
    assert next(updates) >= 0
    job.stop()
    with pytest.raises(Stopped):
        list(updates)
    assert not job.running


def test_a_follower_that_leaves_ends_the_work():
    job = Job(JobQueue(), endless)
    updates = job.updates()
    next(updates)
    updates.close()
    job._thread.join(30)
    assert not job.running


def test_jobs_of_one_line_wait_for_each_other():
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


def test_a_job_is_stopped_while_it_waits():
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


def test_a_full_line_refuses():
    queue = JobQueue(room=0)
    inside, leave = threading.Event(), threading.Event()

    def work(job):
        inside.set()
        leave.wait(30)

    first = Job(queue, work)
    thread = threading.Thread(target=lambda: list(first.updates()))
    thread.start()
    assert inside.wait(30)
    with pytest.raises(BifronsError, match="try again"):
        list(Job(queue, work).updates())
    leave.set()
    thread.join(30)
    list(Job(queue, work).updates())  # there is room again


def test_a_visitor_runs_one_job_in_a_tab():
    jobs, queue = Jobs(), JobQueue()
    first, second, other = (Job(queue, endless) for _ in range(3))
    jobs.add("a", "create", first)
    jobs.add("b", "create", other)
    jobs.add("a", "create", second)
    with pytest.raises(Stopped):
        list(first.updates())
    jobs.remove("a", "create", first)  # is not the visitor's any more
    jobs.leave("a")
    with pytest.raises(Stopped):
        list(second.updates())
    other.check()
    assert len(jobs) == 1
