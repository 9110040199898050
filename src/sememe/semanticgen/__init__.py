"""SemanticGen: a plan in a compact semantic space, and a video rendered from it. README.md draws how data flows."""
