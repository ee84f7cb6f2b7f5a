"""What the numbers in the tables are, see ``docs/metrics.md``; nothing here knows a model."""
