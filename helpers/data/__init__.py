"""From a student's sheet to samples: read, clean, convert, split."""
from helpers.machine.commands import CourseError


class Unreadable(CourseError):
    """A source that cannot be converted: where, why and what to do, in one sentence."""
