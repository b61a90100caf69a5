"""What an instructor runs: strangers' work in a sandbox, points, feedback."""
