"""From a student's sheet to samples: read, clean, convert, split."""
