"""Neural wrappers around standard codecs, in JAX. Start with `jaxwrap.pipeline`."""
