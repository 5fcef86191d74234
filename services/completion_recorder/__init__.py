"""The one judge: events in, completions out."""
