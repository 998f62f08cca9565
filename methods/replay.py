"""The masks of a stored record, once more: for timing what another run has found."""

import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.budget import Budget
from bench.calibration import Calibration
from bench.masks import Masks
from bench.method import Method, Skip
from bench.model import PrunableModel


@dataclass
class Replay(Method):
    """Keeps the units, with their factors, that the record in the folder `record` kept.

    The weights that the other run may have tuned are not in its record: with model.weights=random, where only costs are
    measured, nothing is lacking; a score is that of the masks alone.
    """

    record: str = ""
    masks: Masks = field(init=False)

    def __post_init__(self) -> None:
        if not (Path(self.record) / "arrays.npz").is_file():
            raise ValueError(f"method.record={self.record}: the folder of a stored record is needed, with its arrays.npz")
        try:
            with np.load(Path(self.record) / "arrays.npz", allow_pickle=False) as arrays:
                self.masks = Masks(arrays["heads"].copy(), arrays["neurons"].copy())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            told = f"method.record={self.record} holds no masks: the run was skipped or failed, or the file is damaged"
            raise ValueError(told) from error

    def prune(self, model: PrunableModel, calibration: Calibration, budget: Budget) -> Masks:
        """The stored masks; skipped where they are of another shape or cost too much here."""
        masks = Masks(self.masks.heads.copy(), self.masks.neurons.copy())
        try:
            masks.check(model.shape)
        except ValueError as error:
            raise Skip(f"the record's masks do not fit this model: {error}") from error
        if not budget.fits(budget.cost(masks)):
            share, whole = budget.cost(masks) / budget.total, bool(masks.heads.all() and masks.neurons.all())
            hint = ", and of single weights a record holds no masks" * whole
            raise Skip(f"the record's masks keep {share:.4f} of the cost, the budget is {1 - budget.ratio:g}{hint}")
        return masks
