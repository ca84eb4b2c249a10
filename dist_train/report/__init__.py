"""Reads run directories and shows them: a page, a picture, a list, a comparison."""
