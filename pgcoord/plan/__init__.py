"""Plans: Markdown files that describe a feature and its phases."""
