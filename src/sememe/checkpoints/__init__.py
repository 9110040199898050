"""Files of weights: folders, headers, loading, conversion, fingerprints and the built-in models. Import the modules."""
