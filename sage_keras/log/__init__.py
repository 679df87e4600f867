"""The logs of the callbacks: their format, and what writes and reads it."""
