"""What a student gets and hands in."""
