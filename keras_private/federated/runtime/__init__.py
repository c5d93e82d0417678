"""Worker processes: how they are started, reached, and served to other hosts."""
