"""What is saved and published with a guided model."""

from .metadata import KEY, check_json, guidance_block, write_guidance

__all__ = ["KEY", "check_json", "guidance_block", "write_guidance"]
