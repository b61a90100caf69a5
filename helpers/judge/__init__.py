"""What answers are worth: before and after, over checkpoints, in public exams, and by chance alone."""
