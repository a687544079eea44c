"""``atlasseg atlases``: list, prepare, average and learn from an atlas library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atlasseg.cli._options import (
    Atlases,
    Device,
    DeviceName,
    ModelOut,
    RecipeFile,
    RecipeOption,
    Settings,
    TrainingCache,
    Without,
    load_recipe,
)

app = typer.Typer(
    no_args_is_help=True,
    help="List the atlases of a library, make a template or a probabilistic atlas, or learn to correct errors.",
)


@app.command("list")
def list_atlases(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the library.")]) -> None:
    """List the atlases of a library with their grids and labels."""
    import pandas as pd

    from atlasseg.atlases.library import read_library
    from atlasseg.cli._tables import print_table

    library = read_library(folder)
    rows = []
    for id_ in library.ids:
        atlas = library.read(id_)
        rows.append(
            {
                "atlas": id_,
                "shape": " x ".join(map(str, atlas.image.shape)),
                "spacing_mm": " x ".join(f"{s:.3g}" for s in atlas.image.spacing_mm),
                "labels": sum(int(v) != 0 for v in atlas.label_values),
                "not annotated": ", ".join(map(str, sorted(atlas.not_annotated))),
            }
        )
    print_table(pd.DataFrame(rows), title=f"{folder}: {library.kind} library")


@app.command("prepare")
def prepare(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the library.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the prepared library.")],
    recipe: RecipeOption = None,
    rounds: Annotated[int, typer.Option(min=1, help="Number of iterations of the template.")] = 3,
) -> None:
    """Make a groupwise template of a library, so that many targets are segmented faster.

    A run with --prepared registers the target to the template only. It composes this transform with the one from the
    template to each atlas, and refines the result in a few iterations. The recipe gives preprocessing and registration:
    use the one that you will run.

    **Example**

    - `atlasseg atlases prepare my_atlases --out my_atlases_prepared --recipe human_brain_t1`
    - `atlasseg run human_brain_t1 --atlases my_atlases --prepared my_atlases_prepared --targets scan.nii.gz`
    """
    from atlasseg.cli._progress import Progress, announce

    announce(f"atlases prepare: read the library {folder}")
    from atlasseg.atlases.library import read_library
    from atlasseg.atlases.prepared import engine_of, write_prepared
    from atlasseg.atlases.prepared import prepare as make
    from atlasseg.pipeline import preprocess
    from atlasseg.recipe import read_recipe

    given = None if recipe is None else read_recipe(recipe)
    steps = given.preprocessing.steps if given else ()
    engine = engine_of(given.registration.steps if given else ())
    library = read_library(folder)
    with Progress("read the atlases") as progress:
        prepared = make(
            library,
            preprocess=lambda image: preprocess(image, steps),
            engine=engine,
            rounds=rounds,
            progress=progress.text,
        )
    write_prepared(prepared, out)
    typer.echo(f"wrote {out}: a template of {len(library)} atlases")


@app.command("average")
def average(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the library.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the probabilistic library.")],
    prepared: Annotated[
        Path | None,
        typer.Option("--prepared", help="Output of `atlases prepare` for this library, to reuse its template."),
    ] = None,
    recipe: RecipeOption = None,
    rounds: Annotated[int, typer.Option(min=1, help="Number of iterations of the template.")] = 3,
    shrink: Annotated[
        int | None,
        typer.Option(min=1, help="Voxel size of the template, as a multiple of that of the scans; 2 for large scans."),
    ] = None,
    smoothing_mm: Annotated[
        float | None,
        typer.Option(min=0, help="Standard deviation of the smoothing; by default estimated on held-out atlases."),
    ] = None,
) -> None:
    """Make a probabilistic atlas of a library: a template with the probability of each label at each voxel.

    The result is a library with one atlas, so a run with it needs one registration for each target. Labels that are
    declared as not annotated in an atlas are not counted as background there. The recipe gives the preprocessing: use
    the one that you will run.

    **Example**

    - `atlasseg atlases average my_atlases --out my_probabilities --recipe human_brain_t1`
    - `atlasseg run human_brain_t1 --atlases my_probabilities --targets scan.nii.gz --out results`
    """
    from atlasseg.cli._progress import Progress, announce

    announce(f"atlases average: read the library {folder}")
    from atlasseg.app.average import average_library
    from atlasseg.recipe import read_recipe

    steps = () if recipe is None else read_recipe(recipe).preprocessing.steps
    with Progress("read the atlases") as progress:
        made = average_library(
            folder,
            out,
            prepared=prepared,
            steps=steps,
            rounds=rounds,
            shrink=shrink,
            smoothing_mm=smoothing_mm,
            progress=progress.text,
        )
    chosen = "given" if smoothing_mm is not None else "most likely for atlases held out"
    typer.echo(f"smoothing: {made.smoothing_mm:.3g} mm ({chosen})")
    typer.echo(f"wrote {out}: probabilities of {len(made.probabilities.label_values) - 1} labels")


@app.command("correct")
def correct(
    recipe: RecipeFile,
    out: ModelOut,
    atlases: Atlases = None,
    without: Without = None,
    cases: Annotated[
        Path | None,
        typer.Option(
            "--cases", metavar="DIR", help="Further labelled scans to train on; they are segmented like targets."
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, help="Maximum number of voxels to train the classifier of a label on.")
    ] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed for drawing the voxels.")] = 0,
    cache: TrainingCache = None,
    settings: Settings = None,
    device: Device = DeviceName.auto,
) -> None:
    """Learn the errors of a recipe on the library, to correct them in every target (corrective learning).

    Segments every atlas from the others, and all --cases from the atlases. Then trains a classifier for each label on
    the errors. The model is valid for this recipe and this library only. To measure it on an atlas of the library,
    train a model --without that atlas; to measure it on a case, train one without that case.

    **Example**

    - `atlasseg atlases correct recipe.toml --out my_atlases_corrective`

    Then use the model in the recipe. The path is relative to the folder of the recipe:

    - `[refinement]` `method = "corrective_learning"`
    - `[refinement.corrective_learning]` `model = "my_atlases_corrective"`
    """
    from atlasseg.cli._progress import Progress, announce

    announce(f"atlases correct: read the recipe {recipe}")
    from atlasseg.app.corrective import correct as train

    checked = load_recipe(recipe, settings, device, targets=None, atlases=atlases, out=None, prepared=None)
    with Progress("read the atlases") as progress:
        model = train(
            checked,
            out,
            without=without or (),
            cases=cases,
            samples_per_label=samples,
            seed=seed,
            cache=cache,
            progress=progress.text,
        )
    typer.echo(f"wrote {out}: classifiers of {len(model.classifiers)} of {len(model.labels)} labels")
