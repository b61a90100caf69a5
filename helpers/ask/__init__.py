"""A model that answers: many questions at once, in a terminal, on a page."""
