"""What is saved and published with a guided model."""

from .metadata import KEY, write_guidance

__all__ = ["KEY", "write_guidance"]
