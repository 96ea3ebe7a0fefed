"""Files of other tools: CompressAI-Vision's packed features (``packing``), streams (``stream``) and tables
(``summary``)."""
