"""Make the pictures of docs/regions.md: python docs/regions/pictures.py."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from atlasseg import io
from atlasseg.regions import figures, merge, split, split_and_merge
from atlasseg.regions.adjacency_graph import adjacency_graph
from atlasseg.volume import Image, LabelMap

HERE = Path(__file__).parent
ROWS = ["01007777", "10227777", "02227777", "44227777", "00113377", "11223777", "24305777", "23355077"]


def outlined(panel, digits, regions, title):
    """Digits on a grid of pixels, with the borders of regions."""
    panel.imshow(digits, cmap="Blues", vmax=14, interpolation="nearest")
    for at in np.ndindex(digits.shape):
        panel.text(at[1], at[0], f"{digits[at]:.0f}", ha="center", va="center", fontsize=10)
    for axis in range(2):
        for at in np.argwhere(np.diff(regions, axis=axis) != 0):
            across = at + 0.5 * np.eye(2)[axis]
            along = 0.5 * np.eye(2)[1 - axis]
            (y0, x0), (y1, x1) = across - along, across + along
            panel.plot([x0, x1], [y0, y1], color=figures.BORDER, linewidth=2.2, solid_capstyle="round")
    panel.set(title=title, xticks=[], yticks=[], xlim=(-0.55, 7.55), ylim=(7.55, -0.55))


def example() -> Figure:
    """The 8 x 8 slice: pixels, blocks, regions."""
    digits = np.array([[float(d) for d in row] for row in ROWS])
    image = Image(digits[..., None], np.eye(4))
    blocks = split(image, homogeneity="range", threshold=0).array[..., 0]
    regions = split_and_merge.partition(image, homogeneity="range", split_threshold=0).array[..., 0]
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    titles = ("pixels", f"split: {blocks.max()} blocks", f"merged: {regions.max()} regions")
    for n, (parts, title) in enumerate(zip((np.zeros((8, 8)), blocks, regions), titles, strict=True)):
        outlined(figure.add_subplot(1, 3, n + 1), digits, parts, title)
    return figure


def main() -> None:
    """Write all pictures."""
    drawn = {"example_8x8": example()}
    image = io.read_image(HERE.parent.parent / "sample_data" / "targets" / "images" / "target1.nii.gz")
    drawn["blocks"] = figures.borders(image, split(image), title="Octree blocks")
    regions: LabelMap = split_and_merge.partition(image)
    drawn["borders"] = figures.borders(image, regions)
    drawn["dendrogram"] = figures.dendrogram(merge(adjacency_graph(image, regions), regions=1))
    for name, figure in drawn.items():
        figure.savefig(HERE / f"{name}.png", dpi=70, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()
