"""What the examples share: downloads, text, and plots."""
