"""
A new fusion method in one file
===============================

Add a fusion method of your own, and compare it with the others.

A method is a function with a decorator. After that it is everywhere: in recipes, in ``atlasseg compare``,
in ``atlasseg methods`` and in the contract tests. You learn here how to write one, and what the data looks
like inside.
"""

# %%
# The idea
# --------
# Majority voting gives every atlas the same weight. We weight an atlas by its distance to the *median* atlas:
# at each voxel, the closer its intensity is to the median of all candidates and the target, the more it
# counts.

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

import atlasseg
from atlasseg import Atlas, Image, ProbabilityMap
from atlasseg.methods import method
from atlasseg.report import plot_slices

# %%
# The method
# ----------
# The first two arguments are the data: the target, and the candidates, which are atlases on the grid of the
# target. What follows the star are parameters, with a type, a default and a description. The first paragraph
# of the docstring is the summary in lists, the section *Parameters* is what a user of a recipe reads.
#
# ``labels`` of a candidate may be a label map or probabilities, and its ``mask`` is its field of view, if it
# does not cover the whole target. `one_hot` takes care of both.


def one_hot(atlas: Atlas, values: np.ndarray) -> np.ndarray:
    """Give the votes of an atlas, (I, J, K, labels), 0 outside its field of view."""
    if isinstance(atlas.labels, ProbabilityMap):
        votes = np.stack([atlas.labels.probability(int(value)) for value in values], axis=-1)
    else:
        votes = (atlas.labels.array[..., None] == values).astype(np.float32)
    return votes if atlas.mask is None else votes * atlas.mask.array[..., None]


@method("fusion", name="median_weighted")
def fuse(target: Image, candidates: Sequence[Atlas], *, sharpness: float = 2.0) -> ProbabilityMap:
    """Votes weighted by how close an atlas's intensity is to the median of all: robust against single misfits.

    Parameters
    ----------
    target : Image
        The scan.
    candidates : sequence of Atlas
        On the grid of the target.
    sharpness : float
        How fast the weight falls with the distance to the median, in units of the spread; 0 is the majority vote.

    Returns
    -------
    ProbabilityMap
        On the grid of the target.
    """
    values = np.unique(np.concatenate([atlas.label_values for atlas in candidates]))
    scaled = [standardised(image.channels[..., 0]) for image in (target, *(atlas.image for atlas in candidates))]
    median = np.median(scaled, axis=0)
    votes = np.zeros((*target.shape, values.size), np.float32)
    for atlas, intensities in zip(candidates, scaled[1:], strict=True):
        weight = np.exp(-sharpness * np.abs(intensities - median))
        votes += weight[..., None] * one_hot(atlas, values)
    total = votes.sum(axis=-1, keepdims=True)
    nobody = total[..., 0] == 0
    votes[nobody, list(values).index(0)] = 1
    return ProbabilityMap.from_dense(votes / np.where(total == 0, 1, total), values, target.affine)


def standardised(values: np.ndarray) -> np.ndarray:
    """Scale intensities to mean 0 and standard deviation 1, so that atlases on any scale can be compared."""
    return (values - values.mean()) / values.std()


# %%
# Use it
# ------
# The method is registered. It has a name, a summary and parameters:

found = next(each for each in atlasseg.list_methods("fusion") if each.name == "median_weighted")
print(found.summary)
for parameter in found.parameters:
    print(f"  {parameter.name} = {parameter.default}: {parameter.description}")

# %%
# Use it as any other, and set its parameter by name. A wrong name or type is refused with a message.

folder = atlasseg.sample_data()
library = atlasseg.read_library(folder / "atlases")
scan = atlasseg.read_image(folder / "targets/images/target1.nii.gz")
reference = folder / "targets/labels/target1.nii.gz"

candidates = [each.candidate for each in atlasseg.register(scan, library)]
fused = atlasseg.fuse(scan, candidates, "median_weighted", sharpness=3.0)
plot_slices(scan, fused.label_map(), table=library.table, title="median_weighted")
plt.show()

# %%
# Compare
# -------
# How does the parameter act? And is it better than the majority vote?

sharpness = [0.0, 0.5, 1.0, 2.0, 4.0, 8.0]
scores = [
    atlasseg.evaluate(atlasseg.fuse(scan, candidates, "median_weighted", sharpness=value), reference).mean()["dice"]
    for value in sharpness
]
majority = atlasseg.evaluate(atlasseg.fuse(scan, candidates, "majority"), reference).mean()["dice"]

figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
axis.plot(sharpness, scores, "o-", label="median_weighted")
axis.axhline(majority, color="0.6", linestyle="--", label="majority")
axis.set(xlabel="sharpness", ylabel="mean Dice", title="Effect of the parameter")
axis.legend()
plt.show()

# %%
# In a package of your own, name the function as an entry point, and ``atlasseg`` finds it without an import:
#
# .. code-block:: toml
#
#    [project.entry-points."atlasseg.fusion"]
#    median_weighted = "my_package.median_weighted:fuse"
#
# To contribute the method to atlasseg itself, put the function into ``atlasseg/fusion/median_weighted.py``.
# The contract tests in ``tests/fusion/test_contract.py`` then hold it to the rules: any orientation, any
# label values, fields of view.
