"""Training of refinements on a library: each atlas is segmented from the others, and the errors are learned."""

from atlasseg.training.corrective import train_corrective
from atlasseg.training.examples import leave_one_out, segment_example
from atlasseg.training.refiner import split_folds, train_refiner

__all__ = ["leave_one_out", "segment_example", "split_folds", "train_corrective", "train_refiner"]
