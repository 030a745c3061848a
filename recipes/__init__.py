"""The recipes that come with this package, as files to read through importlib.resources."""
