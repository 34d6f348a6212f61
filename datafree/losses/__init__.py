"""The objectives, as pure functions: of logits, of images, of what a teacher's layers remember."""
