"""What is measured: ``distortion``, ``detection`` and ``tracking`` of what arrives, ``bjontegaard`` of curves,
``complexity`` of networks."""
