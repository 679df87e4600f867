"""Numbers that depend on time: one command each, a table on the screen, JSON lines in results/."""
