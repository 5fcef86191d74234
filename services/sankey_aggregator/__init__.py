"""Keeps the Sankey's counts equal to what the completions say."""
