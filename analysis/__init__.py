"""From records to tables, figures and a report; imports no torch."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: on matrices as small as ours more threads wait for each other

import bench  # noqa: F401 - first, so that it refuses files that hide what is imported next
