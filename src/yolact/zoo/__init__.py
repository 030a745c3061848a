"""``zoo:`` stubs and published weights: found on this machine, fetched, and checked."""

from yolact.zoo.search import resolve
from yolact.zoo.stub import Kind, is_stub, parse_stub

__all__ = ["Kind", "is_stub", "parse_stub", "resolve"]
