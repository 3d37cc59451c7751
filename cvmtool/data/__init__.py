"""PACKING. Turns the owner's directories into sealed packs, on the owner's machine."""
