"""bridge_ray: distil a proprietary teacher into a tiny student, through a teacher assistant, on a budget."""

__version__ = "0.1.0"
