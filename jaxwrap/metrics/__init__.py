"""What is measured on decoded frames: ``distortion``, ``bjontegaard``."""
