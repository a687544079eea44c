"""``atlasseg figure``: draw figures for a paper from results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(
    no_args_is_help=True,
    help="Draw a figure for a paper from results: scores, agreement of volumes, groups, or slices.",
)

Results = Annotated[Path, typer.Argument(metavar="RESULTS", help="Output folder.")]
FigureOut = Annotated[
    Path,
    typer.Option("--out", metavar="FILE", help="Figure to write: .pdf, .svg, .png or .tif. Its numbers get .tsv."),
]
Structures = Annotated[
    list[str] | None,
    typer.Option("--structures", metavar="NAME", help="Structure to draw; repeatable, in this order. [default: all]"),
]


@app.command("scores")
def scores(
    results: Results,
    out: FigureOut,
    metric: Annotated[str, typer.Option("--metric", help="Measure to draw.")] = "dice",
    structures: Structures = None,
    groups: Annotated[
        bool, typer.Option("--groups", help="Draw the groups of labels and the foreground, too.")
    ] = False,
) -> None:
    """Draw a measure of every structure, by default Dice, with one point per target.

    RESULTS is the output folder of `atlasseg run` on targets with reference labels, or of `atlasseg compare`, whose
    methods are drawn beside each other.

    **Examples**

    - `atlasseg figure scores results --out dice.pdf`
    - `atlasseg figure scores comparison --metric hausdorff_95_mm --structures Heart --out distance.pdf`
    """
    from atlasseg.app.figures import draw_scores

    _report(draw_scores(results, out, metric=metric, structures=structures or (), groups=groups), out)


@app.command("agreement")
def agreement(
    results: Results,
    out: FigureOut,
    structures: Structures = None,
    percent: Annotated[
        bool, typer.Option("--percent", help="Differences as a percentage of the mean of the two volumes.")
    ] = False,
) -> None:
    """Draw the agreement of volumes with the reference: a Bland-Altman plot for each structure.

    RESULTS is the output folder of `atlasseg run` on targets with reference labels. Bias, limits of agreement (1.96
    standard deviations) and their confidence intervals of 95 % are drawn and written as a table.

    **Examples**

    - `atlasseg figure agreement results --out agreement.pdf`
    - `atlasseg figure agreement results --structures Left-Hippocampus --percent --out agreement.pdf`
    """
    from atlasseg.app.figures import draw_agreement

    _report(draw_agreement(results, out, structures=structures or (), percent=percent), out)


@app.command("groups")
def groups(
    results: Results,
    out: FigureOut,
    participants: Annotated[
        Path,
        typer.Option(
            "--participants", metavar="TSV", help="Table with the participants, or ids of targets, in the first column."
        ),
    ],
    column: Annotated[str, typer.Option("--by", metavar="COLUMN", help="Column of the table with the groups.")],
    structures: Structures = None,
    session: Annotated[
        str | None, typer.Option("--session", help="Session to take, if participants have several.")
    ] = None,
) -> None:
    """Draw volumes by group of participants, and test whether the groups differ.

    RESULTS is the output folder of `atlasseg run`, or of both levels of `atlasseg bids`. Tests are Welch's analysis of
    variance (the t-test for two groups), corrected over the drawn structures by Holm's method.

    **Examples**

    - `atlasseg figure groups results --participants participants.tsv --by diagnosis --out groups.pdf`
    - `atlasseg figure groups study/derivatives/atlasseg --participants study/participants.tsv --by sex --out sex.pdf`
    """
    from atlasseg.app.figures import draw_groups

    found = draw_groups(
        results, out, participants=participants, column=column, structures=structures or (), session=session
    )
    _report(found, out)


@app.command("slices")
def slices(
    segmentation: Annotated[Path, typer.Argument(metavar="SEGMENTATION", help="Label map, such as a result of a run.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Figure to write: .pdf, .svg, .png or .tif.")],
    scan: Annotated[
        Path | None, typer.Option("--scan", help="The scan. [default: the source in the .json beside SEGMENTATION]")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", help="Label map, RTSTRUCT or DICOM-SEG to draw below.")
    ] = None,
    filled: Annotated[bool, typer.Option("--filled", help="Fill the labels instead of outlining them.")] = False,
) -> None:
    """Draw three slices of a scan with the outlines of a segmentation and, below it, of a reference.

    **Examples**

    - `atlasseg figure slices results/p1/p1_desc-joint_dseg.nii.gz --out p1.pdf`
    - `atlasseg figure slices results/p1/p1_desc-joint_dseg.nii.gz --reference patients/p1/rtstruct.dcm --out p1.png`
    """
    from atlasseg.app.figures import draw_slices

    draw_slices(segmentation, out, scan=scan, reference=reference, filled=filled)
    typer.echo(f"wrote {out}")


def _report(numbers: pd.DataFrame, out: Path) -> None:
    """Print the numbers of a figure, and where they are."""
    from atlasseg.cli._tables import print_table

    print_table(numbers)
    typer.echo(f"wrote {out} and {out.with_suffix('.tsv')}")
