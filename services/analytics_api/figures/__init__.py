"""From rows to answers, without any I/O."""
