"""What the course itself knows and asks: facts, exams, the text that the tiny base learns from."""
