"""Where in the image is it: methods that answer with boxes."""
