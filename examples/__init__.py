"""Whole jobs built on kgas_async, each to be read and run."""
