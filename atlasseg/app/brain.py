"""Organ masks of files, for the command ``brain``."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from atlasseg import io
from atlasseg.app import outputs
from atlasseg.app.case import read_atlas, read_case
from atlasseg.atlases.library import AtlasLibrary, Target, read_library, read_targets
from atlasseg.atlases.organs import ORGAN, organs_of
from atlasseg.compute.execution import Listener, Outcome, capture_logs, process_targets
from atlasseg.compute.workers import Workers
from atlasseg.errors import InputError
from atlasseg.evaluation import evaluate
from atlasseg.files import atomic_directory, discard_partial
from atlasseg.labels import Label, LabelTable, default_color
from atlasseg.organ_mask import OrganMask, find_organ
from atlasseg.pipeline import Progress
from atlasseg.volume import Image, LabelMap

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


def extract_brains(
    scans: Sequence[Path],
    atlases: Sequence[Path],
    out: Path,
    *,
    organ: str = "brain",
    report: bool = True,
    spacing_from: io.SpacingSource = "sform",
    channels: Sequence[str] = (),
    workers: Workers = Workers(),  # noqa: B008 - frozen
    listener: Listener | None = None,
) -> list[Outcome[pd.DataFrame]]:
    """Find the organ in every scan, and write mask, probability and report, each scan into its own folder.

    Parameters
    ----------
    scans : sequence of path
        Scans, or folders with ``images/``; with ``labels/`` beside them, the masks are evaluated: all labels above 0
        are then the organ.
    atlases : sequence of path
        Folders of the library: ``images/``, with ``masks/`` or ``labels/``.
    out : path
        Output folder.
    organ : str
        Name of the organ, in file names and pages.
    report : bool
        Write the pages.
    spacing_from : {"sform", "pixdim"}
        As of :func:`atlasseg.io.read_image`.
    channels : sequence of str
        As of :func:`atlasseg.atlases.library.read_library`.
    workers, listener
        As for `app.run.run`.

    Returns
    -------
    list of Outcome
        One per scan, with a table of one row: volume, atlases used, their mean similarity, cut faces, and Dice where
        there is a reference; or the reason of its failure.

    Raises
    ------
    InputError
        The request is invalid: no scan or no library, or an atlas without an organ.
    OutputError
        The output folder cannot be written.
    """
    if not scans or not atlases:
        raise InputError(
            f"expected scans and --atlases DIR, got {len(scans)} scans and {len(atlases)} folders of atlases"
        )
    if not outputs.entity(organ):
        raise InputError(f"--organ: expected a name with letters, got {organ!r}")
    library = read_library(*atlases, spacing_from=spacing_from, masks_suffice=True, channels=channels)
    read_atlas.cache_clear()  # files may have changed since an earlier call in this process
    organs_of([read_atlas(library, id_) for id_ in library.ids])  # to find an atlas without an organ before the work
    targets = read_targets(scans, spacing_from=spacing_from, channels=channels)
    outputs.check_writable(out)
    io.write_json(_description(scans, atlases, organ), out / outputs.DESCRIPTION)
    task = partial(_extract, library=library, out=out, organ=organ, report=report)
    return process_targets(
        task, targets, workers=workers, listener=listener, on_abort=lambda target: discard_partial(out / target.id)
    )


def _description(scans: Sequence[Path], atlases: Sequence[Path], organ: str) -> dict[str, object]:
    return {
        "Name": f"atlasseg {organ} masks",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "atlasseg", "Version": outputs.software_versions()["atlasseg"]}],
        "SourceDatasets": [{"URL": str(path)} for path in (*scans, *atlases)],
        "Libraries": outputs.software_versions(),
    }


def _extract(
    target: Target, progress: Progress, *, library: AtlasLibrary, out: Path, organ: str, report: bool
) -> pd.DataFrame:
    """Read, find, evaluate, report and write one target."""
    import pandas as pd

    from atlasseg.report.organ_page import OrganReport, render

    begun = time.perf_counter()
    with capture_logs(logging.WARNING, "%(message)s") as heard:
        case = read_case(target, library, progress)
        found = find_organ(case.scan, case.atlases, progress=progress)
        table = LabelTable((Label(ORGAN, organ, default_color(ORGAN)),))
        dice = None
        if case.reference is not None:
            reference = LabelMap((case.reference.array != 0).astype("int32"), case.scan.affine)
            scores = evaluate(_label_map(found), reference, table=table)
            dice = next(score.value for score in scores if score.metric == "dice" and score.label == ORGAN)
        progress("write")
        used = [id_ for id_, check in found.atlases.items() if check.keep]
        row = {
            "scan": target.id,
            "volume_ml": round(found.volume_ml, 3),
            "atlases": len(used),
            "similarity": sum(found.similarities[id_] for id_ in used) / max(len(used), 1),
            "cut_off": ", ".join(found.cut_off) or None,
            **({} if dice is None else {"dice": dice}),
        }
        atlases = pd.DataFrame(
            [
                {
                    "atlas": id_,
                    "similarity": round(found.similarities[id_], 6),
                    "used": "yes" if check.keep else "no",
                    "reason": check.reason,
                }
                for id_, check in found.atlases.items()
            ]
        )
        with atomic_directory(out / target.id) as folder:
            stem = f"{target.id}_desc-{outputs.entity(organ)}"
            probability = Image(found.probabilities.probability(ORGAN), case.scan.affine)
            io.write_mask(found.mask, folder / f"{stem}_mask.nii.gz", like=case.scan)
            io.write_image(probability, folder / f"{stem}_probseg.nii.gz", like=case.scan)
            outputs.write_table(atlases, folder / f"{target.id}_atlases.tsv")
            if dice is not None:
                outputs.write_table(
                    outputs.metrics_table(scores, target=target.id, method=organ), folder / f"{target.id}_metrics.tsv"
                )
            sidecar = {
                "Type": "Brain" if organ == "brain" else organ,
                "Sources": case.sources,
                "Atlases": used,
                "VolumeMl": found.volume_ml,
                "CutOff": dict(found.cut_off),
                "Libraries": outputs.software_versions(),
            }
            io.write_json(sidecar, folder / f"{stem}_mask.json")
            if report:
                page = OrganReport(
                    target=target.id,
                    organ=organ,
                    image=case.scan,
                    found=found,
                    labels=_label_map(found),
                    table=table,
                    atlases=atlases,
                    dice=dice,
                    seconds={**found.seconds, "total": time.perf_counter() - begun},
                    warnings=tuple(heard),
                    versions=outputs.software_versions(),
                )
                io.write_text(render(page), folder / f"{target.id}.html")
    return pd.DataFrame([row])


def _label_map(found: OrganMask) -> LabelMap:
    return LabelMap(found.mask.array.astype("int32"), found.mask.affine, found.mask.name)
