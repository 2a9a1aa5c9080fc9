"""Pictures and curves of a run, for a few images and for all of them."""

from bigain.inspector.inspector import Inspector

__all__ = ["Inspector"]
