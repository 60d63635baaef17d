"""A pipeline as a page that makes its images in the visitor's browser, and the server that shows it here."""
