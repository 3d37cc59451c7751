"""SIMULATED. The stand-in for AMD's secure processor. No production policy accepts what it signs."""
