"""From results rows to a page: ``curves`` (series, fronts), ``bd`` (tables), ``figures``, ``allocation`` (maps
and bits of a picture), ``html``, ``terminal``."""
