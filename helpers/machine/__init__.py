"""What the course runs on: its folder, its profile, its processes, its files, its charts."""
