"""cvmtool: train on data nobody else may see, in AMD SEV-SNP confidential virtual machines."""

__version__ = "0.1.0"
