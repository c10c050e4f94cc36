"""Images: folders and named datasets, what a model wants an image to be, corruptions, example inputs."""
