"""UNTRUSTED PEER, driven from the owner's machine.

Every byte it returns is hostile; nothing here decides trust or holds an unsealed secret.
"""
