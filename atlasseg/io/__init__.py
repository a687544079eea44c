"""Input and output: volumes, transforms and tables from files and to files. Each format is a module of this package.

Readers return the types of :mod:`atlasseg.volume`, :mod:`atlasseg.transforms` and :mod:`atlasseg.labels`, and name the
file in every error. Files are written atomically, and the same volume always gives the same bytes. Only this package
and ``atlasseg.itk`` convert LPS coordinates and reversed axes.
"""

from atlasseg.io._dicom_reference import is_dicom as is_dicom
from atlasseg.io._nifti_header import SpacingSource as SpacingSource
from atlasseg.io._opening import MOST_CHANNELS as MOST_CHANNELS
from atlasseg.io._source import Like as Like
from atlasseg.io._source import Volume as Volume
from atlasseg.io._structure_set import Overlap as Overlap
from atlasseg.io._structure_set import Structures as Structures
from atlasseg.io._suffixes import VOLUME_SUFFIXES as VOLUME_SUFFIXES
from atlasseg.io._suffixes import is_dicom_name as is_dicom_name
from atlasseg.io._suffixes import is_volume as is_volume
from atlasseg.io._suffixes import volume_id as volume_id
from atlasseg.io._vector_fields import Convention as Convention
from atlasseg.io.content import content_hash as content_hash
from atlasseg.io.dicom_series import DicomSeries as DicomSeries
from atlasseg.io.dicom_series import list_series as list_series
from atlasseg.io.dicom_series import split_series as split_series
from atlasseg.io.images import FORMAT_SUFFIXES as FORMAT_SUFFIXES
from atlasseg.io.images import LabelFormat as LabelFormat
from atlasseg.io.images import label_format as label_format
from atlasseg.io.images import read_image as read_image
from atlasseg.io.images import read_label_map as read_label_map
from atlasseg.io.images import read_mask as read_mask
from atlasseg.io.images import read_scan as read_scan
from atlasseg.io.images import write_image as write_image
from atlasseg.io.images import write_label_map as write_label_map
from atlasseg.io.images import write_mask as write_mask
from atlasseg.io.points import POINT_SUFFIXES as POINT_SUFFIXES
from atlasseg.io.points import Coordinates as Coordinates
from atlasseg.io.points import PointTable as PointTable
from atlasseg.io.points import is_point_table as is_point_table
from atlasseg.io.points import read_points as read_points
from atlasseg.io.points import write_points as write_points
from atlasseg.io.probabilities import read_probability_map as read_probability_map
from atlasseg.io.probabilities import write_probability_map as write_probability_map
from atlasseg.io.rtstruct import BetweenSlices as BetweenSlices
from atlasseg.io.segmentations import is_segmentation as is_segmentation
from atlasseg.io.structures import DicomCase as DicomCase
from atlasseg.io.structures import Reference as Reference
from atlasseg.io.structures import find_case as find_case
from atlasseg.io.structures import has_structures as has_structures
from atlasseg.io.structures import list_drawn as list_drawn
from atlasseg.io.structures import read_structures as read_structures
from atlasseg.io.tables import read_json as read_json
from atlasseg.io.tables import read_label_table as read_label_table
from atlasseg.io.tables import write_json as write_json
from atlasseg.io.tables import write_label_table as write_label_table
from atlasseg.io.tables import write_text as write_text
from atlasseg.io.tables import write_tsv as write_tsv
from atlasseg.io.transforms import read_ants_transforms as read_ants_transforms
from atlasseg.io.transforms import read_transform as read_transform
from atlasseg.io.transforms import write_transform as write_transform
