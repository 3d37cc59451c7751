"""Byte and text formats. Pure: parse and encode, no I/O, no decisions."""
