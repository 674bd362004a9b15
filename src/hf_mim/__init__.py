"""Masked image modelling for the Hugging Face stack: iBOT, BEiT v2 and dBOT."""

__version__ = "0.1.0"
