"""Networks and linear resamplers round a codec (stages 2 and 6)."""
