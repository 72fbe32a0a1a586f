"""Source code: text and code of one post, program or repository."""
