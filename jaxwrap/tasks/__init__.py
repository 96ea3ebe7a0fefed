"""Networks that use what was decoded: receivers, and parts of receivers."""
