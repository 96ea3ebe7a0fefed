"""An exact model of baseline JPEG on the device."""
