"""The objectives, as pure functions: of logits (kd.py) and of the teacher's statistics (batchnorm.py)."""
