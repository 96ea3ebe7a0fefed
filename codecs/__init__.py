"""Everything that turns frames into bits."""
