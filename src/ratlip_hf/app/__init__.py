"""A pipeline as an app for several visitors at once, and as a folder for a Space."""
