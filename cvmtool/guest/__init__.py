"""MEASURED. Runs inside the confidential VM; part of the image and so of its measurement."""
