"""Plans, timelines, packages and answers, for people."""
