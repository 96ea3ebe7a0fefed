"""From results rows to a page: ``curves`` (series, fronts, BD table), ``figures``, ``html``, ``terminal``."""
