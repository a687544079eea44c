"""Tables of a recipe, one dataclass each: keys, types, meanings and defaults.

Functions with the same parameters take their defaults from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from atlasseg import methods
from atlasseg.recipe.training import Augmentation, Refiner, Training
from atlasseg.similarity import MetricName


@dataclass(frozen=True)
class Step:
    """Method of a stage with the parameters from a recipe; the other parameters keep their defaults.

    Parameters
    ----------
    method : Method
        The method.
    arguments : mapping of str to object
        Parameters given in the recipe.
    """

    method: methods.Method
    arguments: Mapping[str, Any]

    def __call__(self, *data: Any, **given: Any) -> Any:
        """Call the method with the data in `given` that it accepts."""
        taken = {name: value for name, value in given.items() if self.method.takes(name)}
        return self.method.function(*data, **self.arguments, **taken)

    def check(self, **given: Any) -> None:
        """Run the check that the method declares, if any, to find errors before a long computation.

        Parameters
        ----------
        **given
            Further arguments of the check that the stage passes, such as `provenance`.
        """
        if self.method.needs.check is not None:
            self.method.needs.check(**self.arguments, **given)

    @property
    def name(self) -> str:
        """Name of the method."""
        return self.method.name


@dataclass(frozen=True)
class Data:
    """Input and output paths; several folders of atlases form one library.

    Parameters
    ----------
    atlases : paths
        Folder, or list of folders, of the atlas library: ``images/ID.nii.gz`` with ``labels/ID.nii.gz``.
    targets : paths
        Scans to segment: files, or folders with ``images/`` and, to evaluate, ``labels/``.
    out : path, optional
        Folder for the results.
    spacing_from : {"sform", "pixdim"}
        Which voxel size of a NIfTI header to use where its sform and its pixdim differ by more than 1 %.
    channels : strings
        Channels of every scan, in order: ``["T1", "FLAIR"]`` reads ``ID_T1.nii.gz`` and ``ID_FLAIR.nii.gz`` as one
        scan ``ID``, on the grid of the first. Without it each file is a scan.
    volumes : ints
        Volumes of each 4-D scan to read, numbered from 1; several are channels. Without it all are channels.
    """

    atlases: tuple[Path, ...] = ()
    targets: tuple[Path, ...] = ()
    out: Path | None = None
    spacing_from: Literal["sform", "pixdim"] = "sform"
    channels: tuple[str, ...] = ()
    volumes: tuple[int, ...] = ()

    @property
    def reading(self) -> dict[str, Any]:
        """Arguments of `read_library` and `read_targets`: how scans are read."""
        return {"spacing_from": self.spacing_from, "channels": self.channels, "volumes": self.volumes}


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of the scans, target and atlases alike, before registration.

    Parameters
    ----------
    steps : methods
        Methods of preprocessing, in order.
    mask : str
        Region in which similarity is measured: "given" uses the masks beside the scans where there are any,
        "foreground" a foreground found in each scan, "none" every voxel. "brain" finds the brain, or any other organ
        that the atlases are labelled in, see `organ_mask.find_organ`; the methods of preprocessing then work inside it.
    mask_margin_mm : float
        With "brain": similarity is measured up to this far around it, in mm.
    fill_mask : bool
        With "brain": the labels fill the mask. There is none outside, and no background inside.
    crop_margin_mm : float, optional
        Crop the target, after the first registration step, to where the atlases' labels land plus this margin in mm.
        Without it the target is not cropped.
    """

    steps: tuple[Step, ...] = ()
    mask: Literal["given", "foreground", "brain", "none"] = "given"
    mask_margin_mm: Annotated[float, Ge(0)] = 6.0
    fill_mask: bool = False
    crop_margin_mm: float | None = None


@dataclass(frozen=True)
class Localisation:
    """Localisation of a small organ in a large, variable view, before registration; without a method there is none.

    Every atlas is aligned around its labels alone, wherever the organ lies in the scan. Registration then starts from
    there, in a box around the organ, without the atlases that miss it. All labels above 0 are taken as one organ.

    Parameters
    ----------
    method : method, optional
        Method of localisation.
    """

    method: Step | None = None


@dataclass(frozen=True)
class Selection:
    """Selection of the atlases that are used for a target; without it all are used.

    Parameters
    ----------
    before : int, optional
        Number of atlases to keep before the deformable registration, by similarity of coarse thumbnails.
    by : str
        How the thumbnails are aligned: "thumbnails" by their centres, "first_step" by the first registration step.
    metric : str
        Similarity metric of the thumbnails.
    after : int, optional
        Number of atlases to keep after registration, by similarity.
    redundancy : float
        Above 0, atlases that resemble those already chosen count less.
    """

    before: int | None = None
    by: Literal["thumbnails", "first_step"] = "thumbnails"
    metric: MetricName = "correlation"
    after: int | None = None
    redundancy: float = 0.0


@dataclass(frozen=True)
class Registration:
    """Registration of the atlases to the target: each step starts from the result of the one before it.

    Parameters
    ----------
    steps : methods
        Methods of registration, in order.
    prepared : path, optional
        Folder of a library prepared by ``atlasseg atlases prepare``. The target is then registered to its template
        alone, and the transform from there to each atlas is refined, in place of the steps.
    refine_iterations : ints
        Iterations of that refinement at each level, from coarse to fine (see `atlases.prepared.register_prepared`).
    drop_failed : bool
        Leave out atlases whose registration failed, judged by the distribution over the library.
    initial : str, optional
        File of the transform that the first step starts from, ``{target}`` and ``{atlas}`` standing for their ids, as
        ``transforms/{target}_{atlas}.h5``. It takes points of the target to points of the atlas; any format of
        `io.read_transform`.
    channel_weights : floats
        Weight of each channel in the similarity that the steps maximise, in the order of the channels. A step may have
        its own, ``ffd.channel_weights``. Without it all weigh the same.
    """

    steps: tuple[Step, ...] = ()
    prepared: Path | None = None
    refine_iterations: tuple[int, ...] = (30, 30, 8)
    drop_failed: bool = True
    initial: str | None = None
    channel_weights: tuple[Annotated[float, Ge(0)], ...] = ()


@dataclass(frozen=True)
class Propagation:
    """Propagation of the labels to the target's grid.

    Parameters
    ----------
    interpolation : str
        Interpolation of the labels, each label on its own: "linear", "gaussian" or "nearest".
    fractions : bool
        Pass on the fraction of each label in a voxel; otherwise one label a voxel.
    """

    interpolation: Literal["linear", "gaussian", "nearest"] = "linear"
    fractions: bool = True


@dataclass(frozen=True)
class Fusion:
    """Fusion of the candidates into one segmentation.

    Parameters
    ----------
    method : method
        Method of fusion.
    """

    method: Step


@dataclass(frozen=True)
class Refinement:
    """Post-processing of the fused segmentation; without a method there is none.

    Parameters
    ----------
    method : method, optional
        Method of refinement.
    """

    method: Step | None = None


@dataclass(frozen=True)
class Regions:
    """Consistency of the fused labels with the regions of the scan; done only where the recipe has this table.

    Parameters
    ----------
    method : method, optional
        Method that partitions the scan into regions, which then vote on the labels; without it no region votes.
    intensity_exponent : float
        Weight of the intensity where the labels are uncertain; 0 leaves the probabilities as they are.
    window_voxels : float
        Window over which the labels' intensities are measured, in voxels (sd of a Gaussian).
    posterior_weight : float
        Weight of a difference in label probability of 1 when regions are cut, in noise standard deviations.
    field_weight : float
        Weight of the neighbouring regions in a region's vote; 0 lets each region vote on its own.
    edge_contrast : float
        With `field_weight`, contrast between two regions, in noise standard deviations, above which they hardly
        influence each other.
    min_component_fraction : float
        Smallest size of a connected component, as a fraction of the label's largest component (0 to 1). Smaller ones go
        to a neighbouring label.
    largest_part : labels or "all"
        Labels that keep their largest component alone.
    fill_holes : labels or "all"
        Labels whose holes, which are background that they enclose, are filled.
    removable_labels : labels or "all"
        Labels that the votes may remove from the segmentation. Every other label that they remove is put back.
    """

    method: Step | None = None
    intensity_exponent: float = 0.2
    window_voxels: float = 3.0
    posterior_weight: float = 60.0
    field_weight: float = 0.0
    edge_contrast: float = 4.0
    min_component_fraction: float = 0.02
    largest_part: tuple[int, ...] | Literal["all"] = ()
    fill_holes: tuple[int, ...] | Literal["all"] = ()
    removable_labels: tuple[int, ...] | Literal["all"] = ()


@dataclass(frozen=True)
class Tissue:
    """Tissue classification by ``atlasseg tissue``; a recipe has this table or those of ``atlasseg run``, not both.

    Parameters
    ----------
    method : method
        Model of the classes.
    prior : paths
        Files of class probabilities, or the folder of a probabilistic library.
    names : strings
        Names of the classes, in the order of the prior where there is one. Without a prior, CSF, GM and WM go to the
        classes by `contrast`, and other names in ascending order of intensity.
    contrast : str
        Contrast of the first modality: "T1", "T2", "PD", "FLAIR", or "ascending" for names that are in ascending order
        of intensity. "auto" finds it from the depth of the classes below the surface of the brain, and says so.
    """

    method: Step
    prior: tuple[Path, ...] = ()
    names: tuple[str, ...] = ()
    contrast: Literal["auto", "T1", "T2", "PD", "FLAIR", "ascending"] = "auto"


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of the results where a target has a reference.

    Parameters
    ----------
    surface_tolerance_mm : float
        Tolerance of the surface Dice in mm.
    """

    surface_tolerance_mm: float = 1.0


@dataclass(frozen=True)
class Output:
    """Files that are written beside segmentation, label table and volumes.

    Parameters
    ----------
    entropy : bool
        Entropy of the label probabilities, in bits.
    disagreement : bool
        Share of the atlases that disagree with the result.
    probabilities : bool
        Probability of each label, 4-D.
    transforms : bool
        Transform to each atlas.
    report : bool
        Report of each target and of the cohort.
    viewer : bool
        Put the scan into the report, to be viewed in three planes; a 1 mm brain with all its labels takes 10 MB.
    formats : formats
        Further formats of the segmentation, with the names and colours of the labels: "seg.nrrd" (3D Slicer), and for
        targets that are DICOM series "rtstruct" and "dicomseg".
    """

    entropy: bool = True
    disagreement: bool = False
    probabilities: bool = False
    transforms: bool = False
    report: bool = True
    viewer: bool = True
    formats: tuple[Literal["seg.nrrd", "rtstruct", "dicomseg"], ...] = ()


@dataclass(frozen=True)
class Recipe:
    """Checked recipe: one attribute for each table, and its source.

    Parameters
    ----------
    fusion, data, preprocessing, localisation, selection, registration, propagation, refinement : table
        Tables with these names; missing ones have their defaults.
    evaluation, output : table
        Tables with these names; missing ones have their defaults.
    regions, tissue : table, optional
        Tables with these names; None if the recipe does not have them.
    refiner, training, augmentation : table
        Architecture and training of the network.
    name : str
        Name of the recipe in results.
    text : str
        Recipe in TOML, including overrides.
    base : path, optional
        Base folder of relative paths; None: the current folder.
    device : str, optional
        Device that `with_device` set.
    """

    fusion: Fusion
    data: Data = field(default_factory=Data)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    localisation: Localisation = field(default_factory=Localisation)
    selection: Selection = field(default_factory=Selection)
    registration: Registration = field(default_factory=Registration)
    propagation: Propagation = field(default_factory=Propagation)
    refinement: Refinement = field(default_factory=Refinement)
    regions: Regions | None = None
    tissue: Tissue | None = None
    evaluation: Evaluation = field(default_factory=Evaluation)
    output: Output = field(default_factory=Output)
    refiner: Refiner = field(default_factory=Refiner)
    training: Training = field(default_factory=Training)
    augmentation: Augmentation = field(default_factory=Augmentation)
    name: str = "recipe"
    text: str = ""
    base: Path | None = None
    device: str | None = None

    @property
    def variant(self) -> str:
        """Name of the fusion, or ``fusion+refinement``, as for `with_methods`."""
        steps = (self.fusion.method, self.refinement.method)
        return "+".join(step.name for step in steps if step is not None)


SECTIONS: dict[str, type] = {
    "data": Data,
    "preprocessing": Preprocessing,
    "localisation": Localisation,
    "selection": Selection,
    "registration": Registration,
    "propagation": Propagation,
    "fusion": Fusion,
    "refinement": Refinement,
    "regions": Regions,
    "tissue": Tissue,
    "evaluation": Evaluation,
    "output": Output,
    "refiner": Refiner,
    "training": Training,
    "augmentation": Augmentation,
}

RENAMED_KEYS: dict[str, dict[str, str]] = {
    "regions": {"island_share": "min_component_fraction", "may_vanish": "removable_labels"},
    "training": {
        "members": "n_models",
        "round_steps": "validate_every",
        "warm_up": "warmup_fraction",
        "l2": "weight_decay",
        "clip": "grad_clip_norm",
        "averaging": "ema_decay",
    },
    "augmentation": {"often": "probability"},
}
"""New names of renamed keys, by table and old name. A recipe with an old name raises an error with the new one."""
