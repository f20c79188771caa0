"""What is saved and published with a guided model: its metadata, its card, pushing it and loading it back."""

from .callback import ModelCardCallback
from .card import README, has_edited_card
from .load import GuidedModel, load_guided
from .metadata import KEY, check_json, guidance_block, write_guidance
from .push import (
    PushError,
    add_card,
    again,
    api,
    check_revision,
    going_on,
    open_repository,
    push_folder,
    stage_of,
    upload,
)
from .record import CardRecord
from .saving import saved_files, write_training_arguments, write_under_timm_names
from .staging import add_to_stage, make_stage

__all__ = [
    "KEY",
    "README",
    "CardRecord",
    "GuidedModel",
    "ModelCardCallback",
    "PushError",
    "add_card",
    "add_to_stage",
    "again",
    "api",
    "check_json",
    "check_revision",
    "going_on",
    "guidance_block",
    "has_edited_card",
    "load_guided",
    "make_stage",
    "open_repository",
    "push_folder",
    "saved_files",
    "stage_of",
    "upload",
    "write_guidance",
    "write_training_arguments",
    "write_under_timm_names",
]
