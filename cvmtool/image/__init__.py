"""BUILD. Makes guest images and container images from locked packages."""
