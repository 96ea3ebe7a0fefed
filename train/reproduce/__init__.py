"""Published tables beside ours: ``published`` (what the papers print), ``wa`` (WA-RDO)."""
