"""Programs and files outside this process: raw YUV, and the reference encoders."""
