"""Foredraft: say which draft to train before training it, then train, decode, measure and serve it."""

__version__ = "0.1.0"
