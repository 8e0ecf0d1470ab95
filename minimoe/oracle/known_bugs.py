"""Known bugs of others, each a small wrong variant of a paper's code, kept apart from the papers."""
KNOWN_BUGS = []
