"""What a run is apart from its algorithm: folder, saved state, progress, signals, runs that scripts start."""
