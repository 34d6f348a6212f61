"""The command line: flags from Config dataclasses, resuming, and how a program ends."""
