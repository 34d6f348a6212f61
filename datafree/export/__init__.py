"""A student as a folder that somebody else can use: weights, input format, origin, model card."""
