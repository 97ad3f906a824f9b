"""Where images come from: each module reads one kind of source into indices."""
