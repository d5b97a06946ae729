"""What went wrong in a training: read off its curves and files, each finding with its evidence."""
