"""Weights of any origin: from a file or folder on a disk to tensors by name, and those names to a network's."""
