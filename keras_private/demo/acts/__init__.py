"""The acts of the story, one in each module."""
