"""Gen-1: keep the structure of a clip and give it new content. README.md draws how data flows."""
