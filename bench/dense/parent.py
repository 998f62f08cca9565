"""What a record says of the dense model where that is not what one takes it for: pruned before, or no better than a trivial answer."""

from typing import TYPE_CHECKING

from bench.dense.finding import Checkpoint, pruned_before
from bench.records import verdict

if TYPE_CHECKING:
    from bench.model import PrunableModel
    from bench.tasks.kind import Score

SPARSE = 0.001  # the share of zeros from which on weights have been pruned: training leaves next to none


def notes(checkpoint: Checkpoint, dense: "PrunableModel", before: "Score | None", metric: str, arrays: verdict.Arrays) -> list[str]:
    """Notes on the dense model. `before`: its score, of the `metric`; `arrays`: what the record keeps of it."""
    found = list(before.notes if before else ())
    zeros, origin = dense.share_of_zeros(), pruned_before(checkpoint.folder)
    if origin or zeros >= SPARSE:
        how = f" ({origin})" if origin else ""
        found.append(f"the dense model was pruned before{how}: {100 * zeros:.1f} % of its layers' weights are zero, ratio= counts them too")
    if before and is_trivial(before.score, trivial := verdict.trivial(metric, arrays)):
        found.append(
            f"the dense {metric}, {before.text}, is no better than the {trivial:.2f} of a trivial answer: is it a checkpoint of this task,"
            " with its outputs in the order of the task's labels?"
        )
    return found


def is_trivial(score: float | None, trivial: float | None) -> bool:
    """Whether a score, in percent, is at or below that of a trivial answer."""
    return score is not None and trivial is not None and score <= trivial + 1e-9
