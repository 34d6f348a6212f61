"""Data-free knowledge distillation with a reusable generator. Nothing in here imports the root files."""
