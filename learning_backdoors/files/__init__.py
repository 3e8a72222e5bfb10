"""Files, command lines and errors: what every stage builds on. Nothing here imports another part of the project."""
