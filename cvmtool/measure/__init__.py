"""Launch digests, computed. Pure: bytes in, digest out."""
