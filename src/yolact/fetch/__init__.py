"""Transferring files from the internet and unpacking archives, whatever happens on the way."""
