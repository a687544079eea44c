"""Make the pictures of docs/statistics.md: python docs/statistics/pictures.py."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from atlasseg.statistics import curves

HERE = Path(__file__).parent


def drawn(panel, shape, name):
    """A curve through a box, coloured from its start to its end."""
    order = curves.curve(shape, name)
    points = np.stack(np.unravel_index(order, shape), axis=1)
    for n in range(len(points) - 1):
        panel.plot(
            *points[n : n + 2].T, color=colormaps["viridis"](n / len(points)), linewidth=1.6, solid_capstyle="round"
        )
    panel.set(title=f"{name}, {' x '.join(map(str, shape))}", xticks=[], yticks=[], zticks=[])
    panel.set_box_aspect(shape)


def main() -> None:
    """Write all pictures."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    for n, (shape, name) in enumerate((((8, 8, 8), "hilbert"), ((9, 7, 5), "hilbert"), ((9, 7, 5), "serpentine"))):
        drawn(figure.add_subplot(1, 3, n + 1, projection="3d"), shape, name)
    figure.savefig(HERE / "curves.png", dpi=70, bbox_inches="tight", pad_inches=0.1, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()
