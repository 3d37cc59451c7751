"""What a host can do, and why it cannot do more: claims are read, parsed into facts, and checked by pure functions."""
