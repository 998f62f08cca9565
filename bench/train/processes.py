"""Several processes that train together, as torchrun starts them: the first one keeps the record. Imports no torch."""

import os
import sys

from bench.errors import UserError


class Follower(Exception):  # noqa: N818 - it is no error
    """This process has trained with the others, the rest of the run is the first one's."""


def world() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Which of those on this machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def share(batch: int, accumulate: int = 1) -> int:
    """How many examples of a batch each process sees in each of its micro-batches.

    Raises:
        UserError: they do not divide it.
    """
    each, rest = divmod(batch, accumulate * world())
    if rest:
        shared = f" times {world()} processes" * (world() > 1)
        raise UserError(f"accumulate={accumulate}{shared}: it has to divide the batch of {batch}")
    return each


def meet() -> None:
    """Wait until all of them are here, where they talk to each other already."""
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
