"""Models in the forms that other programs read, a form a file."""
