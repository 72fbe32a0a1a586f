"""Where in the picture is it: methods that answer with boxes."""
