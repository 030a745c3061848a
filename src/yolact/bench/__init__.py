"""Benchmarks: how fast a model file runs on this machine, and how large it is."""
