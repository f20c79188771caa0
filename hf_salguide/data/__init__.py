"""Data: loading, joint transforms, collation, checks, and a benchmark that is generated."""

from .checks import annotated_rows, annotated_share, check_folder, check_rows, check_table
from .collator import SaliencyCollator
from .decoy_digits import decoy_digits
from .images import agreement, read_image, read_saliency
from .loading import load_saliency_dataset
from .open_set import leave_one_out_split
from .pictures import load_pictures
from .prepare import prepare_dataset
from .report import CheckReport, Problem
from .transforms import SaliencyTransform, make_transforms

__all__ = [
    "CheckReport",
    "Problem",
    "SaliencyCollator",
    "SaliencyTransform",
    "agreement",
    "annotated_rows",
    "annotated_share",
    "check_folder",
    "check_rows",
    "check_table",
    "decoy_digits",
    "leave_one_out_split",
    "load_pictures",
    "load_saliency_dataset",
    "make_transforms",
    "prepare_dataset",
    "read_image",
    "read_saliency",
]
