"""How images are made: a method is one file on the contract of base.py; registry.py names them."""
