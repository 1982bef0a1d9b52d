"""A batch on a Ray cluster of this machine, two workers, one of which is killed: run by test_batch.py."""

import logging
import os
import signal
import sys
from pathlib import Path

import ray
from bifrons.scale.batch import BatchRun
from bifrons.scale.models import ModelChoice
from bifrons.scale.ray_pool import RayPool, cluster_workers, connect
from bifrons.scale.rows import Source
from bifrons.scale.tasks import Paint


def main(rows: Path, model: str, output: Path) -> None:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    cluster = connect("auto")
    assert cluster_workers(cluster) == ("cpu", 1)
    task = Paint(ModelChoice("janus", model, "float32"))
    run = BatchRun(output, Source(rows, task.columns, task.check, 0), task, "webdataset", 7, 2)
    plan, finished, killed = run.begin(), 0, 0
    pool = RayPool(cluster, task, "cpu", 2, 1)

    def advance(number: int) -> None:
        nonlocal finished, killed
        finished += number
        if not killed and finished >= 4:
            killed = pool.pids[0]
            os.kill(killed, signal.SIGKILL)

    try:
        died = plan.work(pool, advance)
    finally:
        pool.close()
    print(died, *plan.close())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
