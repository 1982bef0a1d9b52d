"""`bifrons serve --ray` on a Ray cluster of this machine: run by test_serve.py."""

import logging
import sys

import ray
from bifrons.apps.cli.main import main

if __name__ == "__main__":
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    sys.exit(main(["serve", "--ray", "--port", "0", *sys.argv[1:]]))
